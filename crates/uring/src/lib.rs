//! Sockets whose calls are made in batches, by `io_uring(7)`, within a single-threaded tokio runtime.
//!
//! A proxy's processor time goes into system calls: for each request two receives and two sends. A [`Ring`] collects
//! what all tasks of a thread want to receive and send, and hands it to the kernel in one call just before the thread
//! would go to sleep ([`Ring::turn`], from the runtime's `on_thread_park`). Timers, tasks and everything else stay
//! tokio's. A [`Socket`] that waits for data holds no buffer: the kernel takes one from a pool that the ring owns, and
//! what it received is copied out at once.
//!
//! This is the one crate with unsafe code. What makes it sound: the kernel writes only to the pool, which lives until
//! the ring is gone, and reads only from [`Bytes`] that an operation owns until the kernel has said that it is done; a
//! file descriptor is closed only after everything that names it was submitted.

mod pool;
mod ring;

use std::cell::RefCell;
use std::io;

use tokio::runtime::{Builder, LocalOptions, LocalRuntime};

pub use ring::{Ring, Socket};

thread_local! {
    /// The ring of this thread, for the runtime's hook.
    static CURRENT: RefCell<Option<Ring>> = const { RefCell::new(None) };
}

/// A runtime for this thread, with a ring whose turns it takes before it sleeps.
pub fn runtime(ring: &Ring) -> io::Result<LocalRuntime> {
    CURRENT.set(Some(ring.clone()));
    let runtime = Builder::new_current_thread()
        .enable_all()
        .on_thread_park(|| {
            CURRENT.with_borrow(|ring| {
                if let Some(ring) = ring {
                    ring.turn();
                }
            });
        })
        .build_local(LocalOptions::default())?;
    let ring = ring.clone();
    runtime.spawn_local(async move {
        // Without it nothing would ever arrive; it fails only where the runtime's own machinery does.
        let _ = ring.attend().await;
    });
    Ok(runtime)
}
