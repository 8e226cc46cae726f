//! The documents of the APIs as plain structs: read from JSON as foreign clients write it, written as they expect it.
//!
//! Nothing is decided here: a document that parses may still ask for the impossible. This crate does not know core.

pub mod azureml;
pub mod json;
pub mod native;
pub mod yaml;
