//! The data plane: requests to the Synapse process that can serve them.
