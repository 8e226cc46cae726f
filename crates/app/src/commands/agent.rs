//! `trainyard agent`: the process beside the user's code, and `trainyard install-agent`, which brings it there. Hidden: only executors start them.

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use anyhow::Context as _;

/// Arguments of the agent.
#[derive(clap::Args)]
pub struct AgentArgs {
    /// The folder of the attempt
    #[arg(long, value_name = "DIR")]
    attempt_dir: PathBuf,
    /// Which of the attempt's nodes this is
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    node: u32,
    /// A folder that the engine keeps up to date: the order in it is carried over to that of the attempt
    #[arg(long, value_name = "DIR")]
    notes: Option<PathBuf>,
}

/// Runs the agent to its end.
pub fn run(args: &AgentArgs) -> ExitCode {
    let agent = || trainyard_engine::agent::main(&args.attempt_dir, args.node);
    let Some(notes) = &args.notes else { return agent() };
    trainyard_engine::agent::notes::live_with(&args.attempt_dir, notes, agent).unwrap_or_else(|error| {
        crate::printer::error(&anyhow::Error::new(error).context("the agent can do nothing"));
        ExitCode::FAILURE
    })
}

/// Arguments of `install-agent`.
#[derive(clap::Args)]
pub struct InstallArgs {
    /// The folder that this program is copied to
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Copies this program to a folder: from an image that holds nothing else, say, into a pod.
pub fn install(args: &InstallArgs) -> anyhow::Result<ExitCode> {
    let program = std::env::current_exe().context("the path of this program is unknown")?;
    let staged = args.folder.join(".trainyard.tmp");
    let copied = std::fs::copy(&program, &staged).and_then(|_| std::fs::rename(&staged, args.folder.join("trainyard")));
    copied.with_context(|| format!("{} cannot be copied to {}", program.display(), args.folder.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// Arguments of `rank-log`.
#[derive(clap::Args)]
pub struct RankLogArgs {
    /// The folder of the logs
    #[arg(long, value_name = "DIR")]
    logs: PathBuf,
    /// What is started
    #[arg(last = true, required = true)]
    words: Vec<OsString>,
}

/// Becomes one process of an MPI run, which writes to a log of its own. Returns only if that fails.
pub fn rank_log(args: &RankLogArgs) -> anyhow::Error {
    anyhow::Error::new(trainyard_engine::agent::rank_log(&args.logs, &args.words)).context("the process cannot be started")
}
