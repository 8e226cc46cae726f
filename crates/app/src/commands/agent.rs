//! `trainyard agent`: the process beside the user's code. Hidden: only executors start it.

use std::{path::PathBuf, process::ExitCode};

/// Arguments of the agent.
#[derive(clap::Args)]
pub struct AgentArgs {
    /// The folder of the attempt
    #[arg(long, value_name = "DIR")]
    attempt_dir: PathBuf,
}

/// Runs the agent to its end.
pub fn run(args: &AgentArgs) -> ExitCode {
    trainyard_engine::agent::main(&args.attempt_dir)
}
