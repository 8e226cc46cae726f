//! The commands, one file each. A command unwraps its arguments, calls the server through [`crate::client::Client`], and prints.

pub mod agent;
pub mod app;
pub mod backup;
pub mod cancel;
pub mod computes;
pub mod demo;
pub mod doctor;
pub mod download;
pub mod drain;
pub mod environments;
pub mod exec;
pub mod experiments;
pub mod fsck;
pub mod logs;
pub mod restore;
pub mod runs;
pub mod serve;
pub mod show;
pub mod submit;
pub mod token;
pub mod workspace;
