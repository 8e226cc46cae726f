//! `trainyard fsck`: checks rows, blobs and logs against each other, and repairs what can be repaired.

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::SystemTime};

use anyhow::{Context as _, Result};
use trainyard_store::{
    Store,
    backup::refuse_unfinished,
    check::{Check, Depth, Finding, Mode, Repair},
};

use crate::{offline::Offline, printer::Printer, progress::Drawn, server};

/// Arguments of `fsck`.
#[derive(clap::Args)]
#[command(after_help = "\
Without --repair nothing is changed and a server may be at work meanwhile. With it the server must be stopped; runs may go on.

Exit codes: 0 nothing was found, or everything found was repaired; 1 findings are left, or it failed; 2 wrong arguments.")]
pub struct FsckArgs {
    /// Repair what can be repaired
    #[arg(long)]
    repair: bool,
    /// Read and hash every blob
    #[arg(long)]
    deep: bool,
    /// The server's configuration [default: config.toml in the data directory, if there is one]
    #[arg(long, value_name = "FILE", env = "TRAINYARD_CONFIG")]
    config: Option<PathBuf>,
}

/// Checks.
pub async fn run(args: FsckArgs, data_dir: Option<PathBuf>, printer: &Printer) -> Result<ExitCode> {
    let place = Offline::open(data_dir, args.config.as_deref())?;
    let _lock = if args.repair { Some(server::lock(&place.data_dir)?) } else { None };
    refuse_unfinished(&place.data_dir)?;
    let store = Store::open_as_is(&place.store()).await.context("the store cannot be opened")?;
    let check = Check {
        depth: if args.deep { Depth::Contents } else { Depth::Sizes },
        mode: if args.repair { Mode::Repair } else { Mode::Look },
        now: SystemTime::now(),
        progress: Arc::new(Drawn::new(printer)),
    };
    let findings = store.check(&check).await;
    store.close().await;
    let findings = findings?;
    drop(check);
    let left = findings.iter().filter(|finding| finding.repair != Repair::Done).count();
    printer.data(&findings, |findings| text(findings, left))?;
    Ok(if left == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn text(findings: &[Finding], left: usize) -> String {
    let mut text: String = findings.iter().map(line).collect();
    match findings.len() {
        0 => text.push_str("nothing was found\n"),
        found => text.push_str(&format!("{found} found, {} repaired, {left} left\n", found - left)),
    }
    text
}

fn line(finding: &Finding) -> String {
    let Finding { invariant, object, sentence, repair } = finding;
    let repair = match repair {
        Repair::Impossible => "cannot be repaired",
        Repair::Possible => "--repair mends it",
        Repair::Done => "repaired",
    };
    format!("{invariant}  {object}: {sentence} ({repair})\n")
}
