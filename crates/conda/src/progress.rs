//! How a caller is told what happens now.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use rattler::install::{Reporter, Transaction};
use rattler_conda_types::{PrefixRecord, RepoDataRecord};
use trainyard_core::environment::Progress;

/// Is called from any thread with what happens now; it must not block.
pub type Watch = Arc<dyn Fn(Progress) + Send + Sync>;

/// Counts packages of an installation that were fetched and linked.
pub(crate) struct Counter {
    watch: Watch,
    total: usize,
    fetched: AtomicUsize,
    linked: AtomicUsize,
}

impl Counter {
    pub(crate) fn new(watch: Watch, total: usize) -> Self {
        let counter = Self { watch, total, fetched: AtomicUsize::new(0), linked: AtomicUsize::new(0) };
        counter.tell();
        counter
    }

    /// Both go on at the same time; what is told is the one that everything waits for.
    fn tell(&self) {
        let (fetched, linked) = (self.fetched.load(Ordering::Relaxed), self.linked.load(Ordering::Relaxed));
        let (what, done) = if fetched < self.total { ("downloading", fetched) } else { ("linking", linked) };
        (self.watch)(Progress::counted(what, done as u64, self.total as u64, "packages"));
    }
}

impl Reporter for Counter {
    fn on_transaction_start(&self, _: &Transaction<PrefixRecord, RepoDataRecord>) {}
    fn on_transaction_operation_start(&self, _: usize) {}
    fn on_populate_cache_start(&self, operation: usize, _: &RepoDataRecord) -> usize {
        operation
    }
    fn on_validate_start(&self, entry: usize) -> usize {
        entry
    }
    fn on_validate_complete(&self, _: usize) {}
    fn on_download_start(&self, entry: usize) -> usize {
        entry
    }
    fn on_download_progress(&self, _: usize, _: u64, _: Option<u64>) {}
    fn on_download_completed(&self, _: usize) {}
    fn on_populate_cache_complete(&self, _: usize) {
        self.fetched.fetch_add(1, Ordering::Relaxed);
        self.tell();
    }
    fn on_unlink_start(&self, operation: usize, _: &PrefixRecord) -> usize {
        operation
    }
    fn on_unlink_complete(&self, _: usize) {}
    fn on_link_start(&self, operation: usize, _: &RepoDataRecord) -> usize {
        operation
    }
    fn on_link_complete(&self, _: usize) {
        self.linked.fetch_add(1, Ordering::Relaxed);
        self.tell();
    }
    fn on_transaction_operation_complete(&self, _: usize) {}
    fn on_transaction_complete(&self) {}
    fn on_post_link_start(&self, _: &str, _: &str) -> usize {
        0
    }
    fn on_post_link_complete(&self, _: usize, _: bool) {}
    fn on_pre_unlink_start(&self, _: &str, _: &str) -> usize {
        0
    }
    fn on_pre_unlink_complete(&self, _: usize, _: bool) {}
}
