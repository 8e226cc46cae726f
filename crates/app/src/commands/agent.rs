//! `trainyard agent`: the process beside the user's code, `trainyard install-agent`, which brings it there, and what launchers of MPI runs start beside it.
//! Hidden: no person starts them.

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
    #[arg(long, value_name = "DIR", env = trainyard_engine::agent::notes::VARIABLE, hide_env_values = true)]
    notes: Option<PathBuf>,
    /// A folder of the user whose agent this is: environments are kept in it, and the attempt's folder is removed once everything is delivered
    #[arg(long, value_name = "DIR", requires = "notes")]
    user_dir: Option<PathBuf>,
}

/// Runs the agent to its end.
pub fn run(args: &AgentArgs) -> ExitCode {
    let agent = || trainyard_engine::agent::main(&args.attempt_dir, args.node);
    let Some(notes) = &args.notes else { return agent() };
    trainyard_engine::agent::notes::live_with(&args.attempt_dir, notes, args.user_dir.as_deref(), agent).unwrap_or_else(|error| {
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
    /// The folder of the logs; without it a note of this node's agent says what is started
    #[arg(long, value_name = "DIR", requires = "words")]
    logs: Option<PathBuf>,
    /// What is started
    #[arg(last = true, requires = "logs")]
    words: Vec<OsString>,
}

/// Becomes one process of an MPI run, which writes to a log of its own. Returns only if that fails.
pub fn rank_log(args: &RankLogArgs) -> anyhow::Error {
    let error = match &args.logs {
        Some(logs) => trainyard_engine::agent::rank_log(logs, &args.words),
        None => trainyard_engine::agent::rank_of_note(),
    };
    anyhow::Error::new(error).context("the process cannot be started")
}

/// Arguments of `node-shell`.
#[derive(clap::Args)]
pub struct NodeShellArgs {
    /// The file that says where the nodes are
    #[arg(long, value_name = "FILE")]
    nodes: PathBuf,
    /// What would be the words of `ssh`: options, a host, a command line
    #[arg(last = true, required = true)]
    words: Vec<OsString>,
}

/// Has the agent of another node of an MPI run start something.
pub fn node_shell(args: &NodeShellArgs) -> ExitCode {
    trainyard_engine::agent::node_shell(&args.nodes, &args.words)
}
