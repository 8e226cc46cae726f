//! Python environments on the node: finding interpreters, building with uv, caching by canonical hash.
//!
//! Used by the agent, beside the user's code. [`prepare()`] is the one way in. What an environment *is* (its canonical form
//! and hash) is decided in `trainyard_core::environment`; this part makes it exist. Invariant: a folder with a `.complete`
//! marker was built to its end by one builder, and nothing else is ever handed to a run.

mod build;
mod cache;
mod command;
mod host;
mod index;
mod interpreter;
mod prepare;
mod settings;
mod uv;

#[cfg(test)]
mod tests;

pub use cache::{Lock, LockedPackage};
pub use command::BuildLog;
pub use prepare::{PrepareError, Prepared, prepare};
pub use settings::{EnvironmentSettings, PythonFallback};
