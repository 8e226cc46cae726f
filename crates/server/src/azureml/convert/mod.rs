//! Between the wire's documents and ours: one file per noun, each with both directions.

pub(crate) mod artifacts;
pub(crate) mod container;
mod data;
pub(crate) mod definition;
mod distribution;
pub(crate) mod environment;
pub(crate) mod environment_name;
pub(crate) mod environments;
pub(crate) mod errors;
pub(crate) mod events;
pub(crate) mod experiments;
mod lock;
pub(crate) mod paging;
mod refusals;
pub(crate) mod runs;
pub(crate) mod status;
