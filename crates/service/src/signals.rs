//! The signals that a service takes.

use std::io;

use tokio::signal::unix::{Signal as Listener, SignalKind, signal};

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// The end; the signal's name.
    End(&'static str),
    /// Reading the configuration again.
    Reload,
}

/// The signals that this program takes.
#[derive(Debug)]
pub struct Signals {
    interrupt: Listener,
    terminate: Listener,
    hangup: Listener,
}

impl Signals {
    /// Takes them from now on.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// What is asked next.
    pub async fn next(&mut self) -> Asked {
        tokio::select! {
            Some(()) = self.interrupt.recv() => Asked::End("SIGINT"),
            Some(()) = self.terminate.recv() => Asked::End("SIGTERM"),
            Some(()) = self.hangup.recv() => Asked::Reload,
            else => std::future::pending().await,
        }
    }

    /// The signal that ends a stack. The terminal's end is no reason to stop; a stack is stopped on purpose.
    pub async fn end(&mut self) -> &'static str {
        loop {
            if let Asked::End(name) = self.next().await {
                return name;
            }
        }
    }
}
