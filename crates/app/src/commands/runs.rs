//! `trainyard runs`: lists runs, newest first.

use std::process::ExitCode;

use anyhow::Result;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    client::Client,
    follow::text,
    printer::{Printer, table},
};

/// Arguments of `runs`.
#[derive(clap::Args)]
pub struct RunsArgs {
    /// Only runs of this experiment
    #[arg(long, short)]
    experiment: Option<String>,
    /// Only runs with this status, e.g. Running
    #[arg(long)]
    status: Option<String>,
    /// A filter as the API takes it, e.g. "(Tags/stage eq 'prod')"
    #[arg(long)]
    filter: Option<String>,
    /// How many
    #[arg(long, short = 'n', default_value_t = 20)]
    top: u32,
}

/// Lists runs.
pub async fn run(args: RunsArgs, client: &Client, printer: &Printer) -> Result<ExitCode> {
    let path = match &args.experiment {
        Some(experiment) => client.azure("history/v1.0", &format!("/experiments/{experiment}/runs:query")),
        None => client.azure("history/v1.0", "/runs:query"),
    };
    let mut runs: Vec<Value> = Vec::new();
    let mut token = Value::Null;
    while (runs.len() as u64) < u64::from(args.top) {
        let top = (args.top as usize - runs.len()).min(500);
        let body = json!({ "filter": filter(&args), "orderby": "CreatedUtc desc", "top": top, "continuationToken": token });
        let page: Value = client.send_json(Method::POST, &path, &body).await?;
        runs.extend(page["value"].as_array().cloned().unwrap_or_default());
        token = page["continuationToken"].clone();
        if token.is_null() {
            break;
        }
    }
    printer.data(&runs, |runs| {
        let rows = runs.iter().map(|run| {
            let created = text(run, "createdUtc");
            [
                text(run, "runId"),
                match run["preparation"]["message"].as_str() {
                    Some(message) => format!("{} ({message})", text(run, "status")),
                    None => text(run, "status"),
                },
                text(run, "target"),
                created.get(..19).unwrap_or(&created).to_owned(),
                text(run, "displayName"),
            ]
        });
        table(["RUN", "STATUS", "TARGET", "CREATED (UTC)", "NAME"], rows)
    })?;
    if !token.is_null() {
        printer.note(&format!("there are more than {} runs; ask for more with -n", args.top));
    }
    Ok(ExitCode::SUCCESS)
}

fn filter(args: &RunsArgs) -> Option<String> {
    let status = args.status.as_ref().map(|status| format!("(Status eq {status})"));
    match (status, &args.filter) {
        (Some(status), Some(filter)) => Some(format!("({status} and {filter})")),
        (status, filter) => status.or_else(|| filter.clone()),
    }
}
