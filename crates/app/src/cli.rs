//! Arguments, and which command they mean. Exit codes are decided here and nowhere else.
//!
//! | code | meaning |
//! | --- | --- |
//! | 0 | done |
//! | 1 | it failed; for commands that wait for a run: the run did not complete |
//! | 2 | the arguments are wrong |
//! | 3 | no server answers |
//! | 4 | the server refused: not found, not allowed, not valid |
//! | 125 to 127, 128+N | `exec` only, see there |

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use trainyard_core::ids::WorkspacePath;

use crate::{
    client::{ApiError, Client, Unreachable},
    client_file::{ClientFile, Search},
    commands,
    printer::Printer,
};

/// Run service for machine-learning code: answers the Azure ML v1 run API and executes on your own machines.
#[derive(Parser)]
#[command(
    name = "trainyard",
    version,
    max_term_width = 110,
    after_help = "\
Exit codes: 0 done; 1 failed, or the run waited for did not complete; 2 wrong arguments; 3 no server answers;
4 the server refused. `exec` passes the program's own code on."
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options that every command takes.
#[derive(Args)]
struct Global {
    /// The client.json of a server [default: the data directory's]
    #[arg(long, global = true, env = "TRAINYARD_CLIENT", value_name = "FILE")]
    client: Option<PathBuf>,
    /// The server's data directory [default: $XDG_DATA_HOME/trainyard]
    #[arg(long, global = true, env = "TRAINYARD_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The workspace, as NAME, GROUP/NAME or SUBSCRIPTION/GROUP/NAME [default: the client file's]
    #[arg(long, global = true, env = "TRAINYARD_WORKSPACE", value_name = "WORKSPACE")]
    workspace: Option<String>,
    /// Print JSON on standard output
    #[arg(long, global = true)]
    json: bool,
    /// No progress bars
    #[arg(long, global = true)]
    no_progress: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Run the server
    Serve(commands::serve::ServeArgs),
    /// Start a server, submit the example project over the real API, and follow it to its end
    Demo(commands::demo::DemoArgs),
    /// Run a program whose Azure ML calls this server answers
    Exec(commands::exec::ExecArgs),
    /// Submit a folder or zip
    Submit(Box<commands::submit::SubmitArgs>),
    /// List runs
    Runs(commands::runs::RunsArgs),
    /// Show one run
    Show(commands::show::ShowArgs),
    /// Print a run's log, or follow it
    Logs(commands::logs::LogsArgs),
    /// Ask a run to stop
    Cancel(commands::cancel::CancelArgs),
    /// Download a run's files
    Download(commands::download::DownloadArgs),
    /// List, create, archive and delete experiments
    Experiments(commands::experiments::ExperimentsArgs),
    /// Create, list, rotate and delete applications (service principals)
    App(commands::app::AppArgs),
    /// Create and list workspaces
    Workspace(commands::workspace::WorkspaceArgs),
    /// List, show, build, lock, pin, prune, export and import environments
    Environments(commands::environments::EnvironmentsArgs),
    /// List the compute targets with their load, or show one: its machines, who holds its slots, who waits and why
    Computes(commands::computes::ComputesArgs),
    /// Start nothing new on the server, and say when it is safe to take it down
    Drain(commands::drain::DrainArgs),
    /// Print an access token
    Token,
    /// Back up a server, which may be at work, into one file
    Backup(commands::backup::BackupArgs),
    /// Put a backup back
    Restore(commands::restore::RestoreArgs),
    /// Check rows against blobs and logs, and repair what can be repaired
    Fsck(commands::fsck::FsckArgs),
    /// Check the installation, and the server if there is one
    Doctor(commands::doctor::DoctorArgs),
    /// The process beside the user's code; started by the server
    #[command(hide = true)]
    Agent(commands::agent::AgentArgs),
    /// One process of an MPI run; started by its launcher
    #[command(hide = true)]
    RankLog(commands::agent::RankLogArgs),
    /// Has the agent of another node start something; called by the launcher of an MPI run
    #[command(hide = true)]
    NodeShell(commands::agent::NodeShellArgs),
    /// Copies this program into a pod; started by the server
    #[command(hide = true)]
    InstallAgent(commands::agent::InstallArgs),
}

/// Parses the arguments and runs the command.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    trainyard_server::tls::install_crypto_provider();
    // The agent builds a runtime of its own: it must be small and its main thread must live as long as the code it started.
    match &cli.command {
        Command::Agent(args) => return commands::agent::run(args),
        Command::RankLog(args) => return failed(&commands::agent::rank_log(args)),
        Command::NodeShell(args) => return commands::agent::node_shell(args),
        _ => {}
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&anyhow::Error::new(error).context("the runtime cannot be started")),
    };
    let result = runtime.block_on(run(cli));
    // A command that is done does not wait for threads that still look up a name or read standard input.
    runtime.shutdown_background();
    result.unwrap_or_else(|error| failed(&error))
}

async fn run(cli: Cli) -> Result<ExitCode> {
    let Cli { global, command } = cli;
    let printer = Printer::new(global.json, global.no_progress);
    match command {
        Command::Serve(args) => commands::serve::run(args, global.data_dir).await,
        Command::Demo(args) => commands::demo::run(args, global.data_dir, &printer).await,
        Command::Exec(args) => commands::exec::run(args, &global.client_file()?).await,
        Command::Submit(args) => commands::submit::run(*args, &global.connect()?, &printer).await,
        Command::Runs(args) => commands::runs::run(args, &global.connect()?, &printer).await,
        Command::Show(args) => commands::show::run(args, &global.connect()?, &printer).await,
        Command::Logs(args) => commands::logs::run(args, &global.connect()?, &printer).await,
        Command::Cancel(args) => commands::cancel::run(args, &global.connect()?, &printer).await,
        Command::Download(args) => commands::download::run(args, &global.connect()?, &printer).await,
        Command::Experiments(args) => commands::experiments::run(args, &global.connect()?, &printer).await,
        Command::App(args) => commands::app::run(args, &global.connect()?, &printer).await,
        Command::Workspace(args) => commands::workspace::run(args, &global.connect()?, &printer).await,
        Command::Environments(args) if args.is_offline() => commands::environments::run_offline(args, global.data_dir, &printer).await,
        Command::Environments(args) => commands::environments::run(args, &global.connect()?, &printer).await,
        Command::Computes(args) => commands::computes::run(&args, &global.connect()?, &printer).await,
        Command::Drain(args) => commands::drain::run(args, &global.connect()?, &printer).await,
        Command::Token => commands::token::run(&global.connect()?, &printer).await,
        Command::Backup(args) => commands::backup::run(args, global.data_dir, &printer).await,
        Command::Restore(args) => commands::restore::run(args, global.data_dir, &printer).await,
        Command::Fsck(args) => commands::fsck::run(args, global.data_dir, &printer).await,
        Command::Doctor(args) => commands::doctor::run(args, &global.search(), &printer).await,
        Command::Agent(args) => Ok(commands::agent::run(&args)),
        Command::RankLog(args) => Err(commands::agent::rank_log(&args)),
        Command::NodeShell(args) => Ok(commands::agent::node_shell(&args)),
        Command::InstallAgent(args) => commands::agent::install(&args),
    }
}

impl Global {
    fn search(&self) -> Search {
        Search { client: self.client.clone(), data_dir: self.data_dir.clone() }
    }

    fn client_file(&self) -> Result<ClientFile> {
        self.search().find()
    }

    fn connect(&self) -> Result<Client> {
        let file = self.client_file()?;
        let workspace = self.workspace.as_deref().map(|text| workspace(text, &file.workspace())).transpose()?;
        Client::new(file, workspace)
    }
}

/// Fills the parts that `text` leaves out from the client file's workspace.
fn workspace(text: &str, default: &WorkspacePath) -> Result<WorkspacePath> {
    let parts: Vec<&str> = text.trim_matches('/').split('/').collect();
    let path = |subscription: &str, group: &str, name: &str| WorkspacePath {
        subscription_id: subscription.to_owned(),
        resource_group: group.to_owned(),
        workspace_name: name.to_owned(),
    };
    match parts.as_slice() {
        [name] => Ok(path(&default.subscription_id, &default.resource_group, name)),
        [group, name] => Ok(path(&default.subscription_id, group, name)),
        [subscription, group, name] => Ok(path(subscription, group, name)),
        _ => anyhow::bail!("`{text}` is not a workspace: expected NAME, GROUP/NAME or SUBSCRIPTION/GROUP/NAME"),
    }
}

/// Says what went wrong and gives the code for it.
fn failed(error: &anyhow::Error) -> ExitCode {
    crate::printer::error(error);
    if error.chain().any(<dyn std::error::Error>::is::<Unreachable>) {
        ExitCode::from(3)
    } else if error.chain().any(<dyn std::error::Error>::is::<ApiError>) {
        ExitCode::from(4)
    } else {
        ExitCode::from(1)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_workspace_may_leave_out_what_the_client_file_says() {
        let default = WorkspacePath { subscription_id: "s".into(), resource_group: "g".into(), workspace_name: "w".into() };
        let arm = |text| {
            workspace(text, &default).map(|path| format!("{}/{}/{}", path.subscription_id, path.resource_group, path.workspace_name))
        };
        assert_eq!(arm("x").unwrap(), "s/g/x");
        assert_eq!(arm("h/x").unwrap(), "s/h/x");
        assert_eq!(arm("/t/h/x").unwrap(), "t/h/x");
        assert!(arm("a/b/c/d").is_err());
    }
}
