//! Python environments on the node: finding interpreters, building with uv, caching by canonical hash.
//!
//! Used by the agent, beside the user's code. [`prepare()`] is the one way in. What an environment *is* (its canonical form
//! and hash) is decided in `trainyard_core::environment`; this part makes it exist. Invariant: a folder with a `.complete`
//! marker was built to its end by one builder, and nothing else is ever handed to a run.

mod activation;
mod build;
mod bundle;
mod cache;
mod collect;
mod command;
mod conda;
mod downloads;
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
mod record;
mod settings;
mod usage;
mod uv;
mod verify;

#[cfg(test)]
mod tests;

pub use bundle::Form;
pub use command::BuildLog;
pub use downloads::Downloads;
pub use evict::{CachedEnvironment, PruneOptions, Pruned, cached, downloads, pin, prune, unpin};
pub use export::{Exported, export};
pub use import::{Imported, import};
pub use overlay::overlay;
pub use prepare::{PrepareError, Prepared, prepare};
pub use record::{Difference, How};
pub use settings::{EnvironmentSettings, PythonFallback};
pub use usage::InUse;
pub use verify::{Repair, Verified, verify};
