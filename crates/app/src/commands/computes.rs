//! `trainyard computes`: the compute targets with their load.

use std::process::ExitCode;

use anyhow::Result;
use trainyard_wire::native::Compute;

use crate::{
    client::Client,
    printer::{Printer, table},
};

/// Lists the targets.
pub async fn run(client: &Client, printer: &Printer) -> Result<ExitCode> {
    let computes: Vec<Compute> = client.get(&client.native("/computes")).await?;
    printer.data(&computes, |computes| {
        let rows = computes.iter().map(|compute| {
            let Compute { name, engine, slots, busy, queued } = compute;
            [name.clone(), engine.clone(), slots.to_string(), busy.to_string(), queued.to_string()]
        });
        table(["TARGET", "ENGINE", "SLOTS", "BUSY", "WAITING"], rows)
    })?;
    Ok(ExitCode::SUCCESS)
}
