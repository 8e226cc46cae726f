//! Between the wire's documents and ours: one file per noun, each with both directions.

pub(crate) mod artifacts;
pub(crate) mod definition;
pub(crate) mod environment;
pub(crate) mod errors;
pub(crate) mod events;
pub(crate) mod experiments;
pub(crate) mod paging;
mod refusals;
pub(crate) mod runs;
pub(crate) mod status;
