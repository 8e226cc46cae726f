//! The Azure ML v1 dialect: handlers, one file per noun, and their error envelope.

pub(crate) mod address;
pub(crate) mod arm;
pub(crate) mod artifacts;
pub(crate) mod batch;
pub(crate) mod body;
pub(crate) mod computes;
pub(crate) mod conda_file;
pub(crate) mod content;
pub(crate) mod convert;
pub(crate) mod datastores;
pub(crate) mod details;
pub(crate) mod discovery;
pub(crate) mod environment_builds;
pub(crate) mod environments;
pub(crate) mod error;
pub(crate) mod events;
pub(crate) mod execution;
pub(crate) mod experiments;
pub(crate) mod lifecycle;
pub(crate) mod lists;
pub(crate) mod present;
pub(crate) mod references;
pub(crate) mod run_token;
pub(crate) mod runs;
pub(crate) mod tags;
pub(crate) mod upsert;
