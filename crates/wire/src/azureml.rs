//! The documents of the Azure ML v1 API, one file per noun; the sections named are those of the wire contract, azureml-wire.

pub mod arm;
pub mod artifacts;
pub mod data_bindings;
pub mod datastores;
pub mod definition;
pub mod environments;
pub mod error;
pub mod events;
pub mod execution;
pub mod experiments;
pub mod paging;
pub mod query;
pub mod run_details;
pub mod runs;
pub mod sections;
pub mod time;
pub mod tokens;
