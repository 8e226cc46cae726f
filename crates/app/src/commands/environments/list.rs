//! `trainyard environments list`.

use anyhow::Result;
use serde_json::Value;
use trainyard_wire::native::EnvironmentSummary;

use super::{Scope, all};
use crate::{
    client::Client,
    follow::text,
    printer::{Printer, table},
};

/// Arguments of `environments list`.
#[derive(clap::Args)]
pub struct ListArgs {
    /// All that the server knows and what else lies in its cache (for Owners of the server)
    #[arg(long)]
    all: bool,
    /// Environments under names instead: registered ones and those of the server's configuration
    #[arg(long, conflicts_with = "all")]
    names: bool,
}

/// Lists.
pub(super) async fn run(args: &ListArgs, client: &Client, printer: &Printer) -> Result<()> {
    if args.names {
        return names(client, printer).await;
    }
    let found = all(client, if args.all { Scope::Server } else { Scope::Workspace }).await?;
    printer.data(&found, |found| table(["HASH", "PYTHON", "PIP", "CONDA", "SIZE", "LAST USED (UTC)", "STATE"], found.iter().map(row)))
}

fn row(one: &EnvironmentSummary) -> [String; 7] {
    let cached = one.cached.as_ref();
    let state = match cached {
        None => "not cached".to_owned(),
        Some(cached) => {
            let words = [(cached.in_use, "in use"), (cached.pinned, "pinned")];
            words.iter().filter(|(holds, _)| *holds).map(|(_, word)| *word).collect::<Vec<_>>().join(", ")
        }
    };
    [
        one.hash.clone(),
        one.python.clone().unwrap_or_else(|| "-".to_owned()),
        one.pip_packages.to_string(),
        one.conda_packages.to_string(),
        cached.map_or_else(|| "-".to_owned(), |cached| indicatif::HumanBytes(cached.bytes).to_string()),
        cached.map_or_else(|| "-".to_owned(), |cached| cached.last_used.get(..19).unwrap_or(&cached.last_used).to_owned()),
        state,
    ]
}

async fn names(client: &Client, printer: &Printer) -> Result<()> {
    let base = client.azure("environment/v1.0", "/environments");
    let (mut found, mut path): (Vec<Value>, String) = (Vec::new(), base.clone());
    loop {
        let page: Value = client.get(&path).await?;
        found.extend(page["value"].as_array().cloned().unwrap_or_default());
        let Some(token) = page["continuationToken"].as_str() else { break };
        path = format!("{base}?continuation={}", percent_encoding::utf8_percent_encode(token, percent_encoding::NON_ALPHANUMERIC));
    }
    printer.data(&found, |found| table(["NAME", "VERSION"], found.iter().map(|one| [text(one, "name"), text(one, "version")])))
}
