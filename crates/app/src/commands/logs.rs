//! `trainyard logs RUN`: prints a log; with `-f` as it grows, across restarts of the server.

use std::process::ExitCode;

use anyhow::Result;

use crate::{
    client::Client,
    follow::{self, BUILD_LOG},
    printer::{self, Printer},
};

/// Arguments of `logs`.
#[derive(clap::Args)]
pub struct LogsArgs {
    /// The run
    run: String,
    /// Go on until the run has ended; the exit code says whether it completed
    #[arg(long, short)]
    follow: bool,
    /// Which log [default: what the code prints; of a run in several processes, the first one]
    #[arg(long, value_name = "PATH")]
    file: Option<String>,
    /// The log of the environment's build
    #[arg(long, conflicts_with = "file")]
    build: bool,
}

/// Prints the log.
pub async fn run(args: LogsArgs, client: &Client, printer: &Printer) -> Result<ExitCode> {
    let file = match &args.file {
        Some(file) => file.as_str(),
        None if args.build => BUILD_LOG,
        None => follow::driver_log(client, &args.run).await?,
    };
    if !args.follow {
        follow::log_so_far(client, &args.run, file, printer::bytes).await?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.file.is_none() && !args.build {
        follow::until_started(client, &args.run, printer).await?;
    }
    follow::log(client, &args.run, file, printer::bytes).await?;
    let end = follow::until_ended(client, &args.run).await?;
    printer.note(&format!("run {}: {}", args.run, end.status));
    Ok(if end.is_completed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
