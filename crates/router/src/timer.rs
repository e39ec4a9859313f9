//! A deadline that is set anew with every request, cheaply.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::time::{Instant, Sleep, sleep_until};

/// A deadline. The runtime's own timer is touched only when the deadline moves forward in time past it or the timer
/// goes off: a deadline that is put off, as most are, costs nothing.
#[derive(Debug, Default)]
pub(crate) struct Timer {
    at: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timer {
    /// Sets the deadline.
    pub(crate) fn set(&mut self, at: Instant) {
        self.at = Some(at);
        if let Some(sleep) = &mut self.sleep
            && at < sleep.deadline()
        {
            sleep.as_mut().reset(at);
        }
    }

    /// There is no deadline for now.
    pub(crate) fn clear(&mut self) {
        self.at = None;
    }

    /// Whether there is a deadline.
    pub(crate) fn is_set(&self) -> bool {
        self.at.is_some()
    }

    /// Whether the deadline is over; if not, the caller is woken when it is.
    pub(crate) fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(at) = self.at else { return false };
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(at)));
        while sleep.as_mut().poll(cx).is_ready() {
            if sleep.deadline() >= at {
                return true;
            }
            sleep.as_mut().reset(at);
        }
        false
    }

    /// Waits for the deadline.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_over(cx) { Poll::Ready(()) } else { Poll::Pending }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn deadlines_move_both_ways() {
        let start = Instant::now();
        let (mut timer, second) = (Timer::default(), Duration::from_secs(1));
        timer.set(start + 10 * second);
        assert!(poll_fn(|cx| Poll::Ready(!timer.is_over(cx))).await);
        timer.set(start + 30 * second);
        assert!(poll_fn(|cx| Poll::Ready(!timer.is_over(cx))).await);
        poll_fn(|cx| timer.poll(cx)).await;
        assert_eq!(start.elapsed(), 30 * second);
        timer.set(start + 90 * second);
        assert!(poll_fn(|cx| Poll::Ready(!timer.is_over(cx))).await);
        timer.set(start + 40 * second);
        poll_fn(|cx| timer.poll(cx)).await;
        assert_eq!(start.elapsed(), 40 * second);
        timer.clear();
        assert!(poll_fn(|cx| Poll::Ready(!timer.is_over(cx))).await);
    }
}
