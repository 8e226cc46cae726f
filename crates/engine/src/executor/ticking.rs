//! Work that an engine does beside the passes, never twice at once.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// Whether such work is under way.
#[derive(Debug, Default)]
pub(super) struct Ticking(Arc<AtomicBool>);

impl Ticking {
    /// Spawns `tick` unless the one before is still under way.
    pub(super) fn begin(&self, tick: impl Future<Output = ()> + Send + 'static) {
        if self.0.swap(true, Ordering::AcqRel) {
            return;
        }
        // Given back also by a tick that panics: the next one has to come all the same.
        let turn = Turn(Arc::clone(&self.0));
        tokio::spawn(async move {
            let _turn = turn;
            tick.await;
        });
    }
}

struct Turn(Arc<AtomicBool>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_tick_at_a_time_and_the_next_after_one_that_panicked() {
        let (ticking, (told, mut heard)) = (Ticking::default(), tokio::sync::mpsc::unbounded_channel());
        let first = told.clone();
        ticking.begin(async move {
            first.send("first").unwrap();
            tokio::task::yield_now().await;
            panic!("as a test may");
        });
        ticking.begin(async { panic!("there is one under way") });
        assert_eq!(heard.recv().await, Some("first"));
        while ticking.0.load(Ordering::Acquire) {
            tokio::task::yield_now().await;
        }
        ticking.begin(async move { told.send("second").unwrap() });
        assert_eq!(heard.recv().await, Some("second"));
    }
}
