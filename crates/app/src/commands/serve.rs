//! `trainyard serve`: the server, until it is told to stop.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::{
    client_file::default_data_dir,
    server::{Exposure, Server},
    settings::Settings,
};

/// Arguments of `serve`.
#[derive(clap::Args)]
#[command(after_help = "\
The first start makes a private CA, a workspace, the targets `cpu-cluster` and `local`, an application, and client.json with
everything that a client needs. TERM or Ctrl-C stops the server; runs go on and are found again at the next start.

The level of the log is set with TRAINYARD_LOG, e.g. TRAINYARD_LOG=debug.")]
pub struct ServeArgs {
    /// The configuration [default: config.toml in the data directory, if there is one]
    #[arg(long, value_name = "FILE", env = "TRAINYARD_CONFIG")]
    config: Option<PathBuf>,
    /// Address and port [default: 127.0.0.1:8443]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Serve a public address although only the generated credentials exist
    #[arg(long)]
    allow_generated_credentials: bool,
}

/// Serves.
pub async fn run(args: ServeArgs, data_dir: Option<PathBuf>) -> Result<ExitCode> {
    log_to_stderr();
    let data_dir = data_dir.map_or_else(default_data_dir, Ok)?;
    let mut settings = settings(&args, &data_dir)?;
    if let Some(listen) = args.listen {
        settings.server.listen = listen;
    }
    let exposure = if args.allow_generated_credentials { Exposure::Allowed } else { Exposure::Careful };
    let shutdown = shutdown_on_signal()?;
    let server = Server::open(&data_dir, &settings, exposure).await?;
    tracing::info!(url = %server.public_url, client = %server.client_file.display(), ca_sha256 = server.fingerprint, "ready");
    server.run(shutdown).await?;
    tracing::info!("stopped; runs go on");
    Ok(ExitCode::SUCCESS)
}

fn settings(args: &ServeArgs, data_dir: &std::path::Path) -> Result<Settings> {
    let default = Some(data_dir.join("config.toml")).filter(|path| path.exists());
    Settings::load(args.config.clone().or(default).as_deref(), std::env::vars())
}

/// People get lines, collectors get JSON.
pub fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("TRAINYARD_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    if std::io::IsTerminal::is_terminal(&std::io::stderr()) {
        builder.init();
    } else {
        builder.json().flatten_event(true).init();
    }
}

/// Cancelled by TERM or INT.
pub fn shutdown_on_signal() -> Result<CancellationToken> {
    let shutdown = CancellationToken::new();
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind).context("signals cannot be listened for")?;
        let shutdown = shutdown.clone();
        tokio::spawn(async move {
            signals.recv().await;
            shutdown.cancel();
        });
    }
    Ok(shutdown)
}
