//! Makes the world match the rows: the reconcilers, the executors, the agent and the environments it builds.
//!
//! This crate knows no HTTP status and no SQL. The server holds a [`Handle`] and nothing else of it; the binary starts it.

pub mod agent;
mod clock;
mod engine;
pub mod environment;
pub mod executor;
pub mod finalize;
mod heartbeat;
mod hub;
mod pass;
pub mod trust;

pub use engine::{EngineOptions, Handle, OrderSettings, Patience, RunTokens, Target};
pub use heartbeat::Attendance;
pub use hub::{RunKey, Subscription};
