//! `trainyard computes`: the compute targets with their load; with a name, the machines of one, who holds its slots, and who waits for what.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use trainyard_core::ids::ComputeName;
use trainyard_wire::native::computes::{Compute, ComputeDetails, ComputeRun};

use crate::{
    client::Client,
    printer::{Printer, table},
};

/// Arguments of `computes`.
#[derive(Debug, Args)]
pub struct ComputesArgs {
    /// Show one target: its machines, who holds its slots, who waits and why
    name: Option<String>,
}

/// Lists the targets, or shows one.
pub async fn run(args: &ComputesArgs, client: &Client, printer: &Printer) -> Result<ExitCode> {
    match &args.name {
        Some(name) => {
            let name = ComputeName::new(name.as_str())?;
            let details: ComputeDetails = client.get(&client.native(&format!("/computes/{name}"))).await?;
            printer.data(&details, shown)?;
        }
        None => {
            let computes: Vec<Compute> = client.get(&client.native("/computes")).await?;
            printer.data(&computes, |computes| {
                let rows = computes.iter().map(|compute| {
                    let Compute { name, engine, slots, busy, queued } = compute;
                    [name.clone(), engine.clone(), slots.to_string(), busy.to_string(), queued.to_string()]
                });
                table(["TARGET", "ENGINE", "SLOTS", "BUSY", "WAITING"], rows)
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn shown(details: &ComputeDetails) -> String {
    let Compute { name, engine, slots, busy, queued } = &details.compute;
    let mut text = format!("{name} ({engine}): {busy} of {slots} slots busy, {queued} waiting\n");
    match (&details.nodes, &details.nodes_error) {
        (Some(nodes), _) if nodes.is_empty() => text.push_str("\nno machines\n"),
        (Some(nodes), _) => {
            let rows = nodes.iter().map(|node| [node.name.clone(), node.state.clone(), node.says.clone()]);
            text.push_str(&format!("\n{}", table(["NODE", "STATE", "SAYS"], rows)));
        }
        (None, Some(error)) => text.push_str(&format!("\nits machines are not known: {error}\n")),
        (None, None) => {}
    }
    let mut shares = details.shares.clone();
    if details.others.busy > 0 || details.others.waiting > 0 {
        let mut others = details.others.clone();
        others.user = "(other workspaces)".into();
        shares.push(others);
    }
    if !shares.is_empty() {
        let rows = shares.iter().map(|share| [share.user.clone(), share.busy.to_string(), share.waiting.to_string()]);
        text.push_str(&format!("\n{}", table(["USER", "SLOTS", "WAITING"], rows)));
    }
    if !details.running.is_empty() {
        let rows = details.running.iter().map(|run| {
            let what = run.why.clone().or_else(|| run.node.clone()).unwrap_or_default();
            [run.run.clone(), run.experiment.clone(), run.user.clone(), run.slots.to_string(), run.state.clone(), what]
        });
        text.push_str(&format!("\n{}", table(["RUN", "EXPERIMENT", "USER", "SLOTS", "STATE", "WHERE"], rows)));
    }
    if !details.queue.is_empty() {
        text.push_str(&format!(
            "\n{}",
            table(["WAITING", "EXPERIMENT", "USER", "PRIORITY", "SLOTS", "WHY"], details.queue.iter().map(waiting))
        ));
    }
    if details.queue_beyond > 0 {
        text.push_str(&format!("… and {} more\n", details.queue_beyond));
    }
    text
}

fn waiting(run: &ComputeRun) -> [String; 6] {
    let why = run.why.clone().unwrap_or_default();
    [run.run.clone(), run.experiment.clone(), run.user.clone(), run.priority.to_string(), run.slots.to_string(), why]
}
