//! `trainyard restore FILE`: puts a backup back into a data directory.

use std::{
    fs::File,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context as _, Result};
use serde_json::json;
use trainyard_store::backup::{self, Contents, Replace, Restored};

use super::backup::now_us;
use crate::{
    client_file::default_data_dir,
    offline::{Offline, own_config},
    printer::Printer,
    progress::Drawn,
    server,
    settings::Settings,
};

/// Arguments of `restore`.
#[derive(clap::Args)]
#[command(after_help = "\
The whole backup is read before anything is changed. A crash at any moment leaves the old state, or one that the same command
finishes; until it has, the server does not start.

The restored server is drained: look at its runs first, then `trainyard drain --end`. What was waiting or in execution in the backup is
not tried again by itself, because what became of it since is not known. Agents that are still alive are found again.")]
pub struct RestoreArgs {
    /// The backup
    file: PathBuf,
    /// Move aside the server that is in the data directory
    #[arg(long)]
    replace: bool,
    /// The configuration that says where to restore to [default: config.toml in the data directory, else the backup's]
    #[arg(long, value_name = "FILE", env = "TRAINYARD_CONFIG")]
    config: Option<PathBuf>,
}

/// Restores.
pub async fn run(args: RestoreArgs, data_dir: Option<PathBuf>, printer: &Printer) -> Result<ExitCode> {
    let data_dir = server::prepare_data_dir(&data_dir.map_or_else(default_data_dir, Ok)?)?;
    let _lock = server::lock(&data_dir)?;
    let progress = Arc::new(Drawn::new(printer));
    let mut contents = backup::verify(&args.file, progress.clone()).await.context("nothing was changed")?;
    if args.config.is_some() {
        // Two configurations that say different things would only confuse.
        contents.config = None;
    }
    let settings = settings(&data_dir, args.config.as_deref(), &contents)?;
    let place = Offline { data_dir, settings };
    let replace = if args.replace { Replace::MoveAside } else { Replace::Refuse };
    let file = std::path::absolute(&args.file)?;
    let restored = backup::restore((&file, &contents), &place.store(), replace, now_us()?, progress).await?;
    printer.data(
        &json!({
            "data_dir": place.data_dir,
            "made": contents.manifest.made,
            "rows": restored.rows,
            "blobs": restored.blobs,
            "held_runs": restored.held_runs,
            "moved_aside": restored.moved_aside,
            "missing": contents.ending.missing,
            "damaged": contents.ending.damaged,
            "drained": true,
        }),
        |_| text(&place.data_dir, &contents, &restored),
    )?;
    let lost = contents.ending.missing.iter().chain(&contents.ending.damaged);
    for name in lost {
        printer.note(&format!("warning: {name} was missing or damaged already when the backup was made"));
    }
    Ok(ExitCode::SUCCESS)
}

fn text(data_dir: &Path, contents: &Contents, restored: &Restored) -> String {
    let mut text = format!(
        "restored {} as it was at {}: {} rows, {} blobs\n",
        data_dir.display(),
        contents.manifest.made,
        restored.rows,
        restored.blobs
    );
    for path in &restored.moved_aside {
        text.push_str(&format!("moved aside: {}\n", path.display()));
    }
    if restored.held_runs > 0 {
        let runs = restored.held_runs;
        text.push_str(&format!("runs that were not over then, and are not tried again by themselves: {runs}\n"));
    }
    text.push_str(
        "the server is drained: start it, look at its runs, cancel those that were executed since, then `trainyard drain --end`\n",
    );
    text
}

/// The configuration that says where to restore to.
fn settings(data_dir: &Path, config: Option<&Path>, contents: &Contents) -> Result<Settings> {
    let own = own_config(data_dir);
    if let (None, None, Some(config)) = (config, &own, &contents.config) {
        // The restore puts it into its place at the end; until then the directory has none.
        let path = data_dir.join("config.toml.restoring");
        let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&path)?;
        file.write_all(config.as_bytes())?;
        let settings = Settings::load(Some(&path), std::env::vars());
        std::fs::remove_file(&path)?;
        return settings.context("the configuration in the backup cannot be used; give one with --config");
    }
    Settings::load(config.or(own.as_deref()), std::env::vars())
}
