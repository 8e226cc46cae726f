//! The agent as a process: what it does with the user's code, with the server, and what is left after it was killed.
//!
//! An agent has to be a process of its own (it reaps every child, and tests kill it), so this test program starts itself
//! again as one: see [`agent_process`].

mod containers;
mod ends;
mod files;
mod given_up;
mod memory;
mod offline;
mod server;
mod stage;
mod survives;

use std::{path::Path, process::ExitCode};

/// Not a test: with [`stage::AGENT_DIR`] set, this process is the agent of that folder.
#[test]
fn agent_process() {
    if let Some(dir) = std::env::var_os(stage::AGENT_DIR) {
        assert_eq!(trainyard_engine::agent::main(Path::new(&dir), 0), ExitCode::SUCCESS);
    }
}
