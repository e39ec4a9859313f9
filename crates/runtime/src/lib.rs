//! Install, start, supervise and stop a stack on this machine.
