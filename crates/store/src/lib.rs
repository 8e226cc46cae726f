//! The only place with SQL and the only place with blobs.
//!
//! SQLite (the embedded default) and PostgreSQL stand behind one concrete [`Store`]; blobs are content-addressed behind
//! [`blobs::Blobs`]. This crate knows no HTTP, reads no clock and starts no process. Times are microseconds since the epoch.

pub mod apps;
pub mod archive;
pub mod artifacts;
pub mod attempt_nodes;
pub mod attempts;
pub mod backup;
pub mod blobs;
mod cache;
pub mod check;
pub mod computes;
mod create;
mod db;
pub mod ends;
pub mod environments;
pub mod events;
pub mod experiments;
pub mod fail;
pub mod live_files;
pub mod page;
pub mod progress;
pub mod queue;
pub mod registered_environments;
mod run_filter;
mod run_list;
mod run_patch;
mod run_row;
pub mod runs;
pub mod server_settings;
pub mod snapshots;
mod store;
pub mod transitions;
pub mod workspaces;
mod writer;

pub use blobs::Blobs;
pub use live_files::{LiveFiles, LiveKey};
pub use page::{Page, PageRequest};
pub use store::{Store, StoreOptions};
