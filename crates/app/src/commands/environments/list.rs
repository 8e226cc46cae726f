//! `trainyard environments list`.

use anyhow::Result;
use indicatif::HumanBytes;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use trainyard_wire::native::{CacheTotals, EnvironmentSummary};

use super::{Scope, all_with_totals, downloads};
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
    /// The versions of one name instead, the latest first
    #[arg(long, value_name = "NAME", conflicts_with_all = ["all", "names"])]
    versions: Option<String>,
}

/// Lists.
pub(super) async fn run(args: &ListArgs, client: &Client, printer: &Printer) -> Result<()> {
    if args.names {
        return named(client, "/environments", printer).await;
    }
    if let Some(name) = &args.versions {
        return named(client, &format!("/environments/{}/versions", utf8_percent_encode(name, NON_ALPHANUMERIC)), printer).await;
    }
    let (found, totals) = all_with_totals(client, if args.all { Scope::Server } else { Scope::Workspace }).await?;
    printer.data(&found, |found| {
        let listed = table(["HASH", "PYTHON", "PIP", "CONDA", "SIZE", "LAST USED (UTC)", "STATE"], found.iter().map(row));
        totals.as_ref().map_or_else(|| listed.clone(), |totals| format!("{}\n\n{}", listed.trim_end(), in_all(totals)))
    })
}

fn in_all(totals: &CacheTotals) -> String {
    let CacheTotals { environments, environment_bytes, downloads: sizes } = totals;
    format!("in the cache: {environments} environments ({}); downloads: {}", HumanBytes(*environment_bytes), downloads(sizes))
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
        cached.map_or_else(|| "-".to_owned(), |cached| HumanBytes(cached.bytes).to_string()),
        cached.map_or_else(|| "-".to_owned(), |cached| cached.last_used.get(..19).unwrap_or(&cached.last_used).to_owned()),
        state,
    ]
}

/// A list of the environment service.
async fn named(client: &Client, rest: &str, printer: &Printer) -> Result<()> {
    let base = client.azure("environment/v1.0", rest);
    let (mut found, mut path): (Vec<Value>, String) = (Vec::new(), base.clone());
    loop {
        let page: Value = client.get(&path).await?;
        found.extend(page["value"].as_array().cloned().unwrap_or_default());
        let Some(token) = page["continuationToken"].as_str() else { break };
        path = format!("{base}?continuation={}", utf8_percent_encode(token, NON_ALPHANUMERIC));
    }
    printer.data(&found, |found| table(["NAME", "VERSION"], found.iter().map(|one| [text(one, "name"), text(one, "version")])))
}
