//! Makes the world match the rows: the reconcilers, the executors, the agent and the environments it builds.
//!
//! This crate knows no HTTP status and no SQL. The server holds a [`Handle`] and nothing else of it; the binary starts it.

pub mod agent;
mod clock;
pub mod container;
pub mod data;
mod engine;
pub mod environment;
pub mod executor;
pub mod finalize;
mod heartbeat;
mod hub;
mod pass;
mod preparations;
pub mod trust;

pub use engine::{EngineOptions, Handle, OrderSettings, Patience, RunTokens, Target, TargetContainers, Unseal};
pub use heartbeat::Attendance;
pub use hub::{RunKey, Subscription};
