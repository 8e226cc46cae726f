//! `trainyard drain`: the server starts nothing new, what runs goes on, and this says when the machine may go down.

use std::{process::ExitCode, time::Duration};

use anyhow::{Result, bail};
use reqwest::Method;
use serde_json::json;
use trainyard_wire::native::{DrainStatus, DrainWish};

use crate::{client::Client, printer::Printer};

/// Between two looks at a server that is waited for.
const POLL: Duration = Duration::from_millis(500);

const ADDRESS: &str = "/api/v1/drain";

/// Arguments of `drain`.
#[derive(clap::Args)]
#[command(after_help = "\
A drained server takes submissions and keeps them waiting. It stays drained over a restart, until `trainyard drain --end`.

Exit codes: 0 when it is safe to take the machine down (or with --end, when new work is started again); 5 while runs are in execution.")]
pub struct DrainArgs {
    /// Return only once nothing runs any more
    #[arg(long, conflicts_with = "end")]
    wait: bool,
    /// Start new work again
    #[arg(long)]
    end: bool,
    /// Only say how it stands
    #[arg(long, conflicts_with_all = ["wait", "end"])]
    status: bool,
}

/// The code for "runs are still in execution".
const BUSY: u8 = 5;

/// Drains, waits if told to, and says how it stands.
pub async fn run(args: DrainArgs, client: &Client, printer: &Printer) -> Result<ExitCode> {
    let mut status = if args.status { client.get(ADDRESS).await? } else { wish(client, DrainWish { drained: !args.end }).await? };
    let mut running = u64::MAX;
    while args.wait && !status.safe {
        if status.running != running {
            printer.note(&sentence(&status));
            running = status.running;
        }
        tokio::time::sleep(POLL).await;
        status = client.get_patiently(ADDRESS).await?;
        if !status.drained {
            bail!("somebody ended the drain: new work is started again");
        }
    }
    printer.data(&json!(status), |_| sentence(&status))?;
    let busy = status.drained && !status.safe;
    Ok(if busy { ExitCode::from(BUSY) } else { ExitCode::SUCCESS })
}

async fn wish(client: &Client, wish: DrainWish) -> Result<DrainStatus> {
    let request = client.request(Method::PUT, ADDRESS).await?.json(&wish);
    Ok(client.send(request).await?.json().await?)
}

fn sentence(status: &DrainStatus) -> String {
    let runs = |count: u64| format!("{count} run{}", if count == 1 { "" } else { "s" });
    match (status.drained, status.safe) {
        (false, _) => format!("not drained: {} in execution, {} waiting", runs(status.running), runs(status.queued)),
        (true, false) => format!("drained: {} still in execution, {} waiting", runs(status.running), runs(status.queued)),
        (true, true) => format!("drained: nothing runs, the machine may go down; {} waiting", runs(status.queued)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_when_the_machine_may_go_down() {
        let status = DrainStatus { drained: true, running: 1, queued: 2, safe: false };
        assert_eq!(sentence(&status), "drained: 1 run still in execution, 2 runs waiting");
        let safe = DrainStatus { running: 0, safe: true, ..status };
        assert!(sentence(&safe).contains("may go down"));
        assert!(sentence(&DrainStatus { drained: false, ..status }).starts_with("not drained"));
    }
}
