//! `trainyard cancel RUN`: asks a run to stop.

use std::process::ExitCode;

use anyhow::Result;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{client::Client, follow, printer::Printer};

/// Arguments of `cancel`.
#[derive(clap::Args)]
pub struct CancelArgs {
    /// The run
    run: String,
    /// Return only once the run has ended
    #[arg(long)]
    wait: bool,
}

/// Asks, and waits if told to.
pub async fn run(args: CancelArgs, client: &Client, printer: &Printer) -> Result<ExitCode> {
    let run = &args.run;
    let path = client.azure("history/v1.0", &format!("/runs/{run}/cancel"));
    let before: Value = client.send(client.request(Method::POST, &path).await?).await?.json().await?;
    let status =
        if args.wait { follow::until_ended(client, run).await?.status } else { before["status"].as_str().unwrap_or_default().to_owned() };
    printer.data(&json!({ "runId": run, "status": status }), |_| format!("{run}: {status}"))?;
    Ok(ExitCode::SUCCESS)
}
