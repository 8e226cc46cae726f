//! What a run is and what may happen to it.
//!
//! Everything here is a function of its arguments: no I/O, no clock, no randomness, no async. Time and ids come in
//! as parameters, decisions go out as data. The other crates do what this one decides.

pub mod access;
pub mod archive;
pub mod container;
pub mod data;
pub mod definition;
pub mod environment;
pub mod error;
pub mod filter;
pub mod ids;
pub mod kubernetes;
pub mod plan;
pub mod run;
pub mod slurm;

pub use error::{Error, ErrorKind, Result};
