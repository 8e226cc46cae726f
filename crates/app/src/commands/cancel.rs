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
    /// Why, for those who look at the run later
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Return only once the run has ended
    #[arg(long)]
    wait: bool,
}

/// Asks, and waits if told to.
pub async fn run(args: CancelArgs, client: &Client, printer: &Printer) -> Result<ExitCode> {
    let run = &args.run;
    let path = client.azure("history/v1.0", &format!("/runs/{run}/cancel"));
    let mut request = client.request(Method::POST, &path).await?;
    if let Some(reason) = &args.reason {
        request = request.query(&[("CancelationReason", reason)]);
    }
    let before: Value = client.send(request).await?.json().await?;
    let status =
        if args.wait { follow::until_ended(client, run).await?.status } else { before["status"].as_str().unwrap_or_default().to_owned() };
    printer.data(&json!({ "runId": run, "status": status }), |_| format!("{run}: {status}"))?;
    Ok(ExitCode::SUCCESS)
}
