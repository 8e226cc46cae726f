//! `trainyard backup FILE`: everything that a server needs in one file, whether the server runs or not; and `--check`, which reads one.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::SystemTime,
};

use anyhow::{Context as _, Result};
use indicatif::HumanBytes;
use serde_json::{Value, json};
use trainyard_store::backup::{self, Ending, Manifest};

use crate::{offline::Offline, printer::Printer, progress::Drawn};

/// Arguments of `backup`.
#[derive(clap::Args)]
#[command(after_help = "\
The server may be at work meanwhile. The file holds the keys and credentials of the server: whoever can read it can be the server.
Not in it: built environments, which are made again, and the folders of attempts, which belong to their agents.

Exit codes: 0 everything is in the backup; 1 it failed, or the backup is there but blobs that runs name were missing or damaged
before; 2 wrong arguments.")]
pub struct BackupArgs {
    /// The backup to write, or to read with --check
    file: PathBuf,
    /// Read the backup to its end and compare every checksum, instead of writing one
    #[arg(long)]
    check: bool,
    /// The server's configuration [default: config.toml in the data directory, if there is one]
    #[arg(long, value_name = "FILE", env = "TRAINYARD_CONFIG")]
    config: Option<PathBuf>,
}

/// Writes or reads a backup.
pub async fn run(args: BackupArgs, data_dir: Option<PathBuf>, printer: &Printer) -> Result<ExitCode> {
    if args.check {
        return check(&args.file, printer).await;
    }
    let place = Offline::open(data_dir, args.config.as_deref())?;
    let written = backup::write(&place.store(), &args.file, now_us()?, Arc::new(Drawn::new(printer))).await;
    let written = written.context("the backup was not made")?;
    let mut summary = summary(&args.file, &written.manifest, &written.ending)?;
    summary["live_files"] = written.live_files.into();
    summary["files"] = written.files.into();
    printer.data(&summary, |_| {
        format!(
            "{}: {}, {} growing logs, {} keys and settings\n",
            args.file.display(),
            contents(&written.manifest),
            written.live_files,
            written.files
        )
    })?;
    Ok(verdict(&written.ending, printer))
}

async fn check(file: &Path, printer: &Printer) -> Result<ExitCode> {
    let found = backup::verify(file, Arc::new(Drawn::new(printer))).await?;
    printer.data(&summary(file, &found.manifest, &found.ending)?, |_| {
        format!("{}: whole; made {} by {}: {}\n", file.display(), found.manifest.made, found.manifest.program, contents(&found.manifest))
    })?;
    Ok(verdict(&found.ending, printer))
}

fn summary(file: &Path, manifest: &Manifest, ending: &Ending) -> Result<Value> {
    Ok(json!({
        "file": file,
        "bytes": std::fs::metadata(file)?.len(),
        "made": manifest.made,
        "program": manifest.program,
        "schema": manifest.schema,
        "rows": manifest.rows(),
        "blobs": manifest.blobs,
        "blob_bytes": manifest.blob_bytes,
        "sums_sha256": ending.sums_sha256,
        "missing": ending.missing,
        "damaged": ending.damaged,
    }))
}

fn contents(manifest: &Manifest) -> String {
    format!("{} rows, {} blobs of {}", manifest.rows(), manifest.blobs, HumanBytes(manifest.blob_bytes))
}

/// Says what was not as it should have been; 1 if there was something.
fn verdict(ending: &Ending, printer: &Printer) -> ExitCode {
    for name in &ending.missing {
        printer.note(&format!("warning: {name} is named by a row and was not there when the backup was made"));
    }
    for name in &ending.damaged {
        printer.note(&format!("warning: {name} was damaged already when the backup was made"));
    }
    if ending.missing.is_empty() && ending.damaged.is_empty() {
        return ExitCode::SUCCESS;
    }
    printer.note("hint: `trainyard fsck --deep` says which runs they belong to; an older backup may have them");
    ExitCode::FAILURE
}

/// Now, microseconds since the epoch.
pub(super) fn now_us() -> Result<i64> {
    Ok(i64::try_from(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_micros())?)
}
