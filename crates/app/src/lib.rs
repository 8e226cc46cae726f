//! The binary's own part: arguments, configuration, wiring, commands and what they print.

pub mod cli;
pub mod client;
pub mod client_file;
pub mod commands;
pub mod conda_file;
pub mod curated;
pub mod environment_flags;
pub mod exec;
pub mod follow;
pub mod offline;
pub mod printer;
pub mod progress;
pub mod project;
pub mod server;
pub mod settings;
