//! Synapse's endpoint tables per version, routing policy and the matcher.
