//! Buffers that the kernel chooses from when something arrives: a "provided buffer ring" (`io_uring_register_buf_ring(3)`).
#![expect(unsafe_code, reason = "the kernel reads the ring of buffers and writes to the buffers")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use bytes::Bytes;
use io_uring::Submitter;
use io_uring::types::BufRingEntry;

/// How many buffers there are: a power of two. They are given back as soon as they are seen, so that few are enough;
/// and few stay in the processor's cache, for the kernel takes them in turn.
const COUNT: u16 = 64;
/// The size of each.
pub(crate) const SIZE: usize = 16 << 10;
/// The group's number, of which a ring has one.
pub(crate) const GROUP: u16 = 0;
/// The ring must begin at the beginning of a page.
const PAGE: usize = 4096;

/// The buffers, and the ring in which the kernel finds those that are free.
#[derive(Debug)]
pub(crate) struct Pool {
    ring: NonNull<BufRingEntry>,
    buffers: NonNull<u8>,
    tail: u16,
}

fn layouts() -> (Layout, Layout) {
    // Both are constants that fit.
    let ring = Layout::from_size_align(usize::from(COUNT) * size_of::<BufRingEntry>(), PAGE);
    let buffers = Layout::from_size_align(usize::from(COUNT) * SIZE, PAGE);
    match (ring, buffers) {
        (Ok(ring), Ok(buffers)) => (ring, buffers),
        _ => unreachable!("constant layouts"),
    }
}

fn allocate(layout: Layout) -> NonNull<u8> {
    // SAFETY: the layouts are not of size zero.
    let memory = unsafe { alloc_zeroed(layout) };
    NonNull::new(memory).unwrap_or_else(|| handle_alloc_error(layout))
}

impl Pool {
    /// Makes the buffers and tells the kernel of them. The pool must not be dropped while the kernel may still receive
    /// into it.
    pub(crate) fn new(submitter: &Submitter<'_>) -> io::Result<Self> {
        let (ring, buffers) = layouts();
        let mut pool = Self { ring: allocate(ring).cast(), buffers: allocate(buffers), tail: 0 };
        // SAFETY: the memory is as long as COUNT entries, page-aligned, and lives until after the io_uring is closed
        // (see `Inner`'s drop).
        unsafe {
            submitter.register_buf_ring_with_flags(pool.ring.as_ptr() as u64, COUNT, GROUP, 0)?;
        }
        for number in 0..COUNT {
            pool.give(number);
        }
        Ok(pool)
    }

    /// Gives a buffer to the kernel.
    fn give(&mut self, number: u16) {
        let buffer = self.buffers.as_ptr().wrapping_add(usize::from(number) * SIZE);
        let place = usize::from(self.tail % COUNT);
        // SAFETY: `place` is below COUNT, so the entry lies within the allocation.
        let mut entry = unsafe { self.ring.add(place) };
        // SAFETY: the entry is initialised, and the kernel reads it only once the tail has moved past it.
        let entry = unsafe { entry.as_mut() };
        entry.set_addr(buffer as u64);
        #[expect(clippy::cast_possible_truncation, reason = "16 KiB")]
        entry.set_len(SIZE as u32);
        entry.set_bid(number);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: it is the address of the ring's first entry, which is initialised.
        let tail = unsafe { BufRingEntry::tail(self.ring.as_ptr()) };
        // SAFETY: the tail is a u16 in memory of ours, aligned, and shared with the kernel only, which reads it.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }

    /// Takes out what the kernel put into a buffer, and gives the buffer back.
    pub(crate) fn take(&mut self, number: u16, length: usize) -> Bytes {
        let number = number % COUNT;
        let start = self.buffers.as_ptr().wrapping_add(usize::from(number) * SIZE);
        // SAFETY: the buffer lies within the allocation and is initialised; the kernel has handed it over, and gets it
        // back only below.
        let data = unsafe { std::slice::from_raw_parts(start, length.min(SIZE)) };
        let data = Bytes::copy_from_slice(data);
        self.give(number);
        data
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let (ring, buffers) = layouts();
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.ring.as_ptr().cast(), ring) };
        // SAFETY: likewise.
        unsafe { dealloc(self.buffers.as_ptr(), buffers) };
    }
}
