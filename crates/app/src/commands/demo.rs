//! `trainyard demo`: the main job in one command. A real server on a free port, the founding example's project and definition, submitted over
//! the real API with a real token, followed to its end.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use reqwest::{
    Method,
    multipart::{Form, Part},
};
use serde_json::Value;
use trainyard_wire::native::Environment;

use crate::{
    client::Client,
    client_file::{ClientFile, default_data_dir},
    commands::{serve::shutdown_on_signal, submit::tell_end},
    follow::{self, DRIVER_LOG, Standing},
    printer::{self, Printer},
    server::{Exposure, Server},
    settings::Settings,
};

/// Arguments of `demo`.
#[derive(clap::Args)]
pub struct DemoArgs {
    /// Stop the server at the end instead of telling how to go on
    #[arg(long, hide = true)]
    quiet_end: bool,
}

const SCRIPT: &str = "# hello.py\nprint(\"Hello!\")\n";
const DEFINITION: &str = include_str!("../../assets/definition.json");
const EXPERIMENT: &str = "new_experiment";

/// Runs the demo.
pub async fn run(args: DemoArgs, data_dir: Option<PathBuf>, printer: &Printer) -> Result<ExitCode> {
    let data_dir = data_dir.map_or_else(default_data_dir, Ok)?;
    let mut settings = Settings::load(Some(data_dir.join("config.toml")).filter(|path| path.exists()).as_deref(), std::env::vars())?;
    settings.server.listen = "127.0.0.1:0".into();
    let shutdown = shutdown_on_signal()?;
    let server = Server::open(&data_dir, &settings, Exposure::Careful).await?;
    let client = Client::new(ClientFile::read(&server.client_file)?, None)?;
    printer.note(&format!("server      {}", server.public_url));
    printer.note(&format!("data        {}", data_dir.display()));
    let serving = tokio::spawn(server.run(shutdown.clone()));
    let outcome = tokio::select! {
        outcome = submit_and_follow(&client, printer) => outcome,
        () = shutdown.cancelled() => Err(anyhow::anyhow!("interrupted; the run goes on and is found again by `trainyard serve`")),
    };
    shutdown.cancel();
    serving.await.context("the server's task failed")??;
    let end = outcome?;
    if end.is_completed() && !args.quiet_end {
        printer.note(&how_to_go_on(&data_dir));
    }
    Ok(if end.is_completed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn submit_and_follow(client: &Client, printer: &Printer) -> Result<Standing> {
    client.token().await?;
    printer.note("token       ok");
    let experiment: Value = client
        .send(client.request(Method::POST, &client.azure("history/v1.0", &format!("/experiments/{EXPERIMENT}"))).await?)
        .await?
        .json()
        .await?;
    printer.note(&format!("experiment  {EXPERIMENT} ({})", follow::text(&experiment, "experimentId")));
    let run = submit(client).await?;
    printer.note(&format!("run         {run}"));
    let told = follow::watch(client, &run, |standing| {
        printer.note(&format!("status      {}", standing.status));
        Ok(())
    });
    let build = follow::log(client, &run, "azureml-logs/20_image_build_log.txt", |bytes| indented("  build | ", bytes));
    let log = follow::log(client, &run, DRIVER_LOG, printer::bytes);
    let (end, build, log) = tokio::join!(told, build, log);
    build?;
    log?;
    let end = end?;
    if let Some(hash) = end.run["properties"]["trainyard.environment"].as_str() {
        let environment: Environment = client.get(&client.native(&format!("/environments/{hash}"))).await?;
        let count = environment.lock["packages"].as_array().map_or(0, Vec::len);
        printer.note(&format!("environment {} packages, Python {}", count, follow::text(&environment.lock, "python")));
    }
    tell_end(printer, &run, &end.run);
    Ok(end)
}

/// The founding example's own request: two file parts and nothing else.
async fn submit(client: &Client) -> Result<String> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    zip.start_file("hello.py", crate::project::stored())?;
    zip.write_all(SCRIPT.as_bytes())?;
    let form = Form::new()
        .part("runDefinitionFile", Part::bytes(DEFINITION.as_bytes()).file_name("definition.json"))
        .part("projectZipFile", Part::bytes(zip.finish()?.into_inner()).file_name("project.zip"));
    let path = client.azure("execution/v1.0", &format!("/experiments/{EXPERIMENT}/startrun"));
    let answer: Value = client.send(client.request(Method::POST, &path).await?.multipart(form)).await?.json().await?;
    answer["runId"].as_str().map(str::to_owned).context("the answer has no runId")
}

/// Lines on standard error, marked so that they are not taken for the run's own output.
fn indented(mark: &str, bytes: &[u8]) -> Result<()> {
    let mut err = std::io::stderr().lock();
    for line in String::from_utf8_lossy(bytes).lines() {
        writeln!(err, "{mark}{line}")?;
    }
    Ok(())
}

fn how_to_go_on(data_dir: &Path) -> String {
    let option = match default_data_dir() {
        Ok(default) if default == data_dir => String::new(),
        _ => format!(" --data-dir {}", data_dir.display()),
    };
    format!(
        "\nThat was a real run. To go on:\n  trainyard serve{option}\n  trainyard runs{option}\n  trainyard submit FOLDER --script SCRIPT --follow{option}\n  \
         trainyard exec{option} -- python YOUR_AZURE_ML_SCRIPT.py"
    )
}
