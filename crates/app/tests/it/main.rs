//! The integration tests, one binary: the real program, real processes, real clients.

#![expect(unreachable_pub, reason = "one binary: what its modules share is pub")]
#![expect(clippy::print_stderr, reason = "a test that is skipped says so")]

mod support;

mod access;
mod bad_input;
mod cli;
mod conda;
mod containers;
mod data;
mod distributed;
mod endurance;
mod environment_builds;
mod environment_service;
mod environments;
mod environments_command;
mod execution;
mod founding;
mod history;
mod keep;
mod kubernetes;
mod lifecycle;
mod slurm;
mod slurm_users;
mod tokens;
mod upgrade;
