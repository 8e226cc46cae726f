//! The binary's own part: arguments, configuration, wiring, commands and what they print.

pub mod cli;
pub mod client;
pub mod client_file;
pub mod commands;
pub mod exec;
pub mod follow;
pub mod printer;
pub mod project;
pub mod server;
pub mod settings;
