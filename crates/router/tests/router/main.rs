//! The router against real small servers over unix sockets, as a client sees it.
#![expect(clippy::unwrap_used, reason = "whatever goes wrong here fails the test")]

extern crate matrix_stack_router as router;

/// How the routers of these tests move bytes.
const TRANSPORT: router::Transport = router::Transport::Auto;

mod balance;
mod beside;
mod encrypted;
mod front;
mod lab;
mod life;
mod names;
mod protocol;
mod trouble;
