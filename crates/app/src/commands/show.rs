//! `trainyard show RUN`: everything that is known of a run, on one page.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::{Value, json};
use trainyard_wire::native::{Attempt, Environment, Event};

use super::environments::made_of;
use crate::{client::Client, follow::text, printer::Printer};

/// Arguments of `show`.
#[derive(clap::Args)]
pub struct ShowArgs {
    /// The run
    run: String,
    /// Also list every package of the environment
    #[arg(long)]
    packages: bool,
}

/// Shows a run.
pub async fn run(args: ShowArgs, client: &Client, printer: &Printer) -> Result<ExitCode> {
    let id = &args.run;
    let run: Value = client.get(&client.azure("history/v1.0", &format!("/runs/{id}"))).await?;
    let details: Value = client.get(&client.azure("history/v1.0", &format!("/runs/{id}/details"))).await?;
    let attempts: Vec<Attempt> = client.get(&client.native(&format!("/runs/{id}/attempts"))).await?;
    let events: Vec<Event> = client.get(&client.native(&format!("/runs/{id}/events"))).await?;
    let environment: Option<Environment> = match run["properties"]["trainyard.environment"].as_str() {
        Some(hash) => Some(client.get(&client.native(&format!("/environments/{hash}"))).await?),
        None => None,
    };
    let page = Page { run, details, attempts, events, environment };
    printer.data(&page.document(), |_| page.text(args.packages))?;
    Ok(ExitCode::SUCCESS)
}

struct Page {
    run: Value,
    details: Value,
    attempts: Vec<Attempt>,
    events: Vec<Event>,
    environment: Option<Environment>,
}

impl Page {
    fn document(&self) -> Value {
        json!({ "run": self.run, "details": self.details, "attempts": self.attempts, "events": self.events, "environment": self.environment })
    }

    fn text(&self, packages: bool) -> String {
        let mut page = String::new();
        let mut fact = |name: &str, value: String| {
            if !value.is_empty() {
                page.push_str(&format!("{name:<12} {value}\n"));
            }
        };
        let run = &self.run;
        fact("run", text(run, "runId"));
        fact("name", text(run, "displayName"));
        fact("status", text(run, "status"));
        fact("preparing", run["preparation"]["message"].as_str().unwrap_or_default().to_owned());
        fact("waits", run["queueingInfo"]["message"].as_str().unwrap_or_default().to_owned());
        // The last that is known: of the run's end, or of the attempt before the one that is waited for.
        fact("cause", self.events.iter().rev().map(|event| kind(&event.data["Cause"])).find(|kind| !kind.is_empty()).unwrap_or_default());
        fact("because", run["error"]["error"]["message"].as_str().unwrap_or_default().to_owned());
        fact("target", text(run, "target"));
        fact("script", text(run, "scriptName"));
        fact("created", text(run, "createdUtc"));
        fact("started", text(run, "startTimeUtc"));
        fact("ended", text(run, "endTimeUtc"));
        for (key, value) in run["tags"].as_object().into_iter().flatten() {
            fact("tag", format!("{key} = {}", value.as_str().unwrap_or("null")));
        }
        for warning in run["warnings"].as_array().into_iter().flatten() {
            fact("warning", text(warning, "message"));
        }
        for attempt in &self.attempts {
            let cause = attempt.cause.as_ref().map(kind).unwrap_or_default();
            fact(
                "attempt",
                format!("{} {} {} {cause}", attempt.number, attempt.id, attempt.node.as_deref().unwrap_or_default()).trim_end().to_owned(),
            );
        }
        for node in self.attempts.last().iter().flat_map(|attempt| &attempt.nodes) {
            fact("node", format!("{} {} {}", node.node, node.host, json!(node.phase).as_str().unwrap_or_default()));
        }
        let named = &self.details["runDefinition"]["environment"];
        fact(
            "environment",
            [text(named, "name"), text(named, "version")].iter().filter(|part| !part.is_empty()).cloned().collect::<Vec<_>>().join(":"),
        );
        if let Some(environment) = &self.environment {
            let lock = &environment.lock;
            fact("environment", format!("{} ({})", &environment.hash[..12], made_of(lock)));
            for package in lock["packages"].as_array().into_iter().flatten().filter(|_| packages) {
                fact("", format!("{}=={}", text(package, "name"), text(package, "version")));
            }
            for package in lock["conda"].as_array().into_iter().flatten().filter(|_| packages) {
                fact("", format!("{}={}={}", text(package, "name"), text(package, "version"), text(package, "build")));
            }
        }
        for path in self.details["logFiles"].as_object().into_iter().flat_map(|files| files.keys()) {
            fact("log", path.clone());
        }
        for event in &self.events {
            let name = event.name.rsplit('.').next().unwrap_or_default();
            fact("event", format!("{} {name} {}", event.timestamp, text(&event.data, "Message")).trim_end().to_owned());
        }
        page
    }
}

/// The kind of a cause; of one part of a run on several nodes, how it ended.
fn kind(cause: &Value) -> String {
    let kind = text(cause, "kind");
    if kind == "part" { text(&cause["cause"], "kind") } else { kind }
}
