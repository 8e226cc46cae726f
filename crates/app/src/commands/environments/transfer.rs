//! `trainyard environments export` and `import`: an environment, or the downloads that it is made of, as one file, for machines without network.
//!
//! Both work on the cache folder of a server's machine, whether the server runs or not.

use std::{
    fs::{self, File},
    io::{self, BufReader, BufWriter, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};
use serde_json::json;
use trainyard_core::{environment::Progress, ids::EnvironmentHash};
use trainyard_engine::environment::{self, EnvironmentSettings, Exported, Form};

use crate::{offline::Offline, printer::Printer, progress::Stage, server};

/// Where the cache is.
#[derive(clap::Args)]
pub(super) struct TransferArgs {
    /// The server's configuration [default: config.toml in the data directory, if there is one]
    #[arg(long, value_name = "FILE", env = "TRAINYARD_CONFIG")]
    config: Option<PathBuf>,
}

impl TransferArgs {
    fn settings(&self, data_dir: Option<PathBuf>) -> Result<EnvironmentSettings> {
        let place = Offline::open(data_dir, self.config.as_deref())?;
        server::environments(&place.data_dir, &place.settings)
    }
}

/// Arguments of `environments export`.
#[derive(clap::Args)]
#[command(after_help = "\
A built environment is put back at the same path, or built again from what is in the file where that cannot be. With --downloads the file holds
what the environment's lock names instead: `environments import` on the other machine, then `submit --lock` or `environments build LOCK` there.")]
pub struct ExportArgs {
    /// The environment's hash, or the beginning of it
    hash: String,
    /// The file to write
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// The downloads of its lock instead of the environment
    #[arg(long)]
    downloads: bool,
    #[command(flatten)]
    place: TransferArgs,
}

/// Arguments of `environments import`.
#[derive(clap::Args)]
pub struct ImportArgs {
    /// What `environments export` wrote
    file: PathBuf,
    /// Write the lock that it carries into this file
    #[arg(long, value_name = "FILE")]
    lock: Option<PathBuf>,
    #[command(flatten)]
    place: TransferArgs,
}

/// Writes an archive.
pub(super) async fn export(args: ExportArgs, data_dir: Option<PathBuf>, printer: &Printer) -> Result<ExitCode> {
    let settings = args.place.settings(data_dir)?;
    let hash = full_hash(&settings, &args.hash)?;
    let form = if args.downloads { Form::Downloads } else { Form::Environment };
    let mut stage = Stage::new(printer);
    let Exported { files, bytes, .. } = write_whole(&args.output, async |file| {
        let exported = environment::export(&settings, &hash, form, file, &mut |progress: &Progress| stage.step(progress)).await;
        exported.map_err(anyhow::Error::new)
    })
    .await?;
    drop(stage);
    let document = json!({ "hash": hash, "file": args.output, "files": files, "bytes": bytes });
    printer.data(&document, |_| format!("{hash}: {files} files, {} in {}", indicatif::HumanBytes(bytes), args.output.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// Reads an archive into the cache.
pub(super) async fn import(args: ImportArgs, data_dir: Option<PathBuf>, printer: &Printer) -> Result<ExitCode> {
    let settings = args.place.settings(data_dir)?;
    let file = File::open(&args.file).with_context(|| format!("{} cannot be read", args.file.display()))?;
    let mut stage = Stage::new(printer);
    let imported = environment::import(&settings, &mut BufReader::new(file), &mut |progress: &Progress| stage.step(progress)).await;
    drop(stage);
    let imported = imported.with_context(|| format!("{} was not imported", args.file.display()))?;
    if let Some(path) = &args.lock {
        let text = serde_json::to_string_pretty(&imported.lock)? + "\n";
        fs::write(path, text).with_context(|| format!("{} cannot be written", path.display()))?;
    }
    let form = match imported.form {
        Form::Environment => "environment",
        Form::Downloads => "downloads",
    };
    let document = json!({ "hash": imported.hash, "form": form, "files": imported.files, "lock": imported.lock });
    printer.data(&document, |_| match (imported.form, imported.files) {
        (Form::Environment, 0) => format!("{} was there already", imported.hash),
        (Form::Environment, files) => format!("{} is in the cache ({files} files), pinned", imported.hash),
        (Form::Downloads, files) => format!("the downloads of {} are in the cache ({files} new files)", imported.hash),
    })?;
    if imported.form == Form::Downloads && args.lock.is_none() {
        printer.note("hint: --lock FILE writes the lock, which `trainyard environments build FILE` then builds without network");
    }
    Ok(ExitCode::SUCCESS)
}

/// The one environment in the cache whose hash begins so.
fn full_hash(settings: &EnvironmentSettings, beginning: &str) -> Result<EnvironmentHash> {
    if let Ok(hash) = EnvironmentHash::new(beginning) {
        return Ok(hash);
    }
    let found: Vec<EnvironmentHash> = environment::cached(settings).into_iter().map(|one| one.hash).collect();
    let fits: Vec<&EnvironmentHash> = found.iter().filter(|hash| !beginning.is_empty() && hash.as_str().starts_with(beginning)).collect();
    match fits.as_slice() {
        [one] => Ok((*one).clone()),
        [] => bail!("no environment in the cache {} has a hash that begins with `{beginning}`", settings.cache_dir.display()),
        _ => bail!("`{beginning}` is the beginning of {} hashes in the cache", fits.len()),
    }
}

/// Writes a file beside its place and renames it when it is whole and on the disk.
async fn write_whole<T>(path: &Path, write: impl AsyncFnOnce(&mut (dyn Write + Send)) -> Result<T>) -> Result<T> {
    let aside = path.with_file_name(format!(".{}.part", path.file_name().unwrap_or_default().to_string_lossy()));
    let finish = async || -> Result<T> {
        let mut file = BufWriter::new(File::create(&aside).with_context(|| format!("{} cannot be written", path.display()))?);
        let result = write(&mut file).await?;
        file.into_inner().map_err(io::IntoInnerError::into_error).and_then(|file| file.sync_all()).context("the disk refused the file")?;
        fs::rename(&aside, path).with_context(|| format!("{} cannot be put at its place", path.display()))?;
        Ok(result)
    };
    let result = finish().await;
    if result.is_err() {
        // Whatever was written is of no use.
        let _ = fs::remove_file(&aside);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_that_fails_half_way_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("env.tar");
        let failed: Result<()> = write_whole(&path, async |file| {
            file.write_all(b"half")?;
            bail!("the rest is missing")
        })
        .await;
        assert!(failed.is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        write_whole(&path, async |file| Ok(file.write_all(b"whole")?)).await.unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
