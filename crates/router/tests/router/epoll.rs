//! The same tests with a router that goes by epoll, as where the kernel gives no `io_uring`.
#![expect(clippy::unwrap_used, reason = "whatever goes wrong here fails the test")]

extern crate matrix_stack_router as router;

/// How the routers of these tests move bytes.
const TRANSPORT: router::Transport = router::Transport::Epoll;

mod balance;
mod beside;
mod encrypted;
mod front;
mod lab;
mod life;
mod names;
mod protocol;
mod trouble;
