//! `trainyard experiments`: lists, creates, archives and deletes experiments.

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    client::Client,
    follow::text,
    printer::{Printer, table},
};

/// Arguments of `experiments`.
#[derive(clap::Args)]
pub struct ExperimentsArgs {
    /// What to do [default: list]
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Subcommand)]
enum Action {
    /// List experiments
    List {
        /// Archived ones too
        #[arg(long)]
        all: bool,
    },
    /// Create an experiment, or get the one of that name
    Create {
        /// Its name
        name: String,
    },
    /// Take an experiment out of lists
    Archive {
        /// Its name
        name: String,
    },
    /// Bring an archived experiment back
    Reactivate {
        /// Its name
        name: String,
    },
    /// Delete an experiment without runs
    Delete {
        /// Its name
        name: String,
    },
}

/// Does what was asked.
pub async fn run(args: ExperimentsArgs, client: &Client, printer: &Printer) -> Result<ExitCode> {
    match args.action.unwrap_or(Action::List { all: false }) {
        Action::List { all } => {
            let experiments = list(client, if all { "All" } else { "ActiveOnly" }).await?;
            printer.data(&experiments, |experiments| {
                table(["EXPERIMENT", "ID", "CREATED (UTC)", "LATEST RUN"], experiments.iter().map(row))
            })?;
        }
        Action::Create { name } => {
            let made: Value = client.send(client.request(Method::POST, &by_name(client, &name)).await?).await?.json().await?;
            printer.data(&made, |made| text(made, "experimentId"))?;
        }
        Action::Archive { name } => patch(client, printer, &name, json!({ "archive": true })).await?,
        Action::Reactivate { name } => patch(client, printer, &name, json!({ "archive": false })).await?,
        Action::Delete { name } => {
            let path = by_id(client, &name).await?;
            client.send(client.request(Method::DELETE, &path).await?).await?;
            printer.note(&format!("experiment {name} was deleted"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn row(experiment: &Value) -> [String; 4] {
    let created = text(experiment, "createdUtc");
    [
        text(experiment, "name"),
        text(experiment, "experimentId"),
        created.get(..19).unwrap_or(&created).to_owned(),
        text(experiment, "latestCreatedRunId"),
    ]
}

async fn list(client: &Client, view: &str) -> Result<Vec<Value>> {
    let mut experiments = Vec::new();
    let mut token = Value::Null;
    loop {
        let body = json!({ "viewType": view, "continuationToken": token });
        let page: Value = client.send_json(Method::POST, &client.azure("history/v1.0", "/experiments:query"), &body).await?;
        experiments.extend(page["value"].as_array().cloned().unwrap_or_default());
        token = page["continuationToken"].clone();
        if token.is_null() {
            return Ok(experiments);
        }
    }
}

fn by_name(client: &Client, name: &str) -> String {
    client.azure("history/v1.0", &format!("/experiments/{name}"))
}

async fn by_id(client: &Client, name: &str) -> Result<String> {
    let experiment: Value = client.get(&by_name(client, name)).await?;
    Ok(client.azure("history/v1.0", &format!("/experimentids/{}", text(&experiment, "experimentId"))))
}

async fn patch(client: &Client, printer: &Printer, name: &str, body: Value) -> Result<()> {
    let changed: Value = client.send_json(Method::PATCH, &by_id(client, name).await?, &body).await?;
    printer.data(&changed, |changed| row(changed).join("  "))
}
