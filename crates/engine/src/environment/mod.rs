//! Python environments on the node: finding interpreters, building with uv, caching by canonical hash.
//!
//! Used by the agent, beside the user's code. [`prepare()`] is the one way in. What an environment *is* (its canonical form
//! and hash) is decided in `trainyard_core::environment`; this part makes it exist. Invariant: a folder with a `.complete`
//! marker was built to its end by one builder, and nothing else is ever handed to a run.

mod activation;
mod build;
mod bundle;
mod cache;
mod command;
mod conda;
mod evict;
mod export;
mod host;
pub(crate) mod image;
mod import;
mod index;
mod installer;
mod interpreter;
mod limit;
mod locked;
mod measure;
mod overlay;
mod prepare;
mod pylock;
mod settings;
mod usage;
mod uv;

#[cfg(test)]
mod tests;

pub use bundle::Form;
pub use command::BuildLog;
pub use evict::{CachedEnvironment, PruneOptions, Pruned, cached, pin, prune, unpin};
pub use export::{Exported, export};
pub use import::{Imported, import};
pub use overlay::overlay;
pub use prepare::{PrepareError, Prepared, prepare};
pub use settings::{EnvironmentSettings, PythonFallback};
pub use usage::InUse;
