//! `trainyard download RUN`: the files kept with a run.

use std::{
    path::{Component, Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use crate::{
    client::Client,
    follow::text,
    printer::{Printer, table},
};

/// Arguments of `download`.
#[derive(clap::Args)]
pub struct DownloadArgs {
    /// The run
    run: String,
    /// Where to [default: a folder named after the run]
    #[arg(long, short, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Only files whose path starts with this, e.g. outputs/
    #[arg(long, default_value = "")]
    prefix: String,
}

/// Downloads the files.
pub async fn run(args: DownloadArgs, client: &Client, printer: &Printer) -> Result<ExitCode> {
    let folder = args.output.clone().unwrap_or_else(|| PathBuf::from(&args.run));
    let files = list(client, &args).await?;
    if files.is_empty() {
        bail!("run {} keeps no files that start with `{}`", args.run, args.prefix);
    }
    let bar = printer.count_bar("downloading", files.len() as u64);
    let mut fetched = Vec::new();
    for (path, url) in files {
        let target = folder.join(relative(&path)?);
        let bytes = fetch(client, &url, &target).await.with_context(|| format!("{path} could not be downloaded"))?;
        fetched.push(json!({ "path": path, "file": target, "bytes": bytes }));
        bar.inc(1);
    }
    bar.finish_and_clear();
    printer
        .data(&fetched, |fetched| table(["FILE", "BYTES"], fetched.iter().map(|file| [text(file, "file"), file["bytes"].to_string()])))?;
    Ok(ExitCode::SUCCESS)
}

/// Path and URL of every file.
async fn list(client: &Client, args: &DownloadArgs) -> Result<Vec<(String, String)>> {
    let base = client.azure("artifact/v2.0", &format!("/artifacts/prefix/contentinfo/ExperimentRun/dcid.{}/{}", args.run, args.prefix));
    let mut files = Vec::new();
    let mut path = base.clone();
    loop {
        let page: Value = client.get(&path).await?;
        files.extend(page["value"].as_array().into_iter().flatten().map(|file| (text(file, "path"), text(file, "contentUri"))));
        match page["continuationToken"].as_str() {
            Some(token) => {
                let token = percent_encoding::utf8_percent_encode(token, percent_encoding::NON_ALPHANUMERIC);
                path = format!("{base}?continuationToken={token}");
            }
            None => return Ok(files),
        }
    }
}

/// The path as one below a folder: the server names the files, but this machine decides where they go.
fn relative(path: &str) -> Result<&Path> {
    let path = Path::new(path);
    if path.components().all(|part| matches!(part, Component::Normal(_))) {
        Ok(path)
    } else {
        bail!("the server named a file `{}`, which leads out of the folder", path.display())
    }
}

/// Writes the file beside its place and renames it when it is whole.
async fn fetch(client: &Client, url: &str, target: &Path) -> Result<u64> {
    if let Some(parent) = target.parent() {
        tokio::fs::create_dir_all(parent).await?;
    }
    let partial = target.with_file_name(format!(".{}.part", target.file_name().unwrap_or_default().to_string_lossy()));
    let mut body = client.send(client.anonymous(url)).await?.bytes_stream();
    let mut file = tokio::fs::File::create(&partial).await?;
    let mut bytes = 0;
    while let Some(chunk) = body.next().await {
        let chunk = chunk?;
        bytes += chunk.len() as u64;
        file.write_all(&chunk).await?;
    }
    file.flush().await?;
    tokio::fs::rename(&partial, target).await?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_leads_out_of_the_folder_is_refused() {
        assert!(relative("outputs/a/b.txt").is_ok());
        for path in ["../x", "/etc/passwd", "a/../../b"] {
            assert!(relative(path).is_err(), "{path}");
        }
    }
}
