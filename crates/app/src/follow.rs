//! Waiting for a run and following its log, across restarts of the server.
//!
//! A log is asked for from the byte after the last one printed, so that nothing is lost or repeated whenever the connection is cut.

use std::{
    io::Write as _,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Result, bail};
use futures_util::StreamExt as _;
use reqwest::{Method, StatusCode};
use serde_json::Value;
use trainyard_wire::native::LOG_ATTEMPT_HEADER;

use crate::{
    client::{ApiError, Client, PATIENCE, is_passing},
    printer::Printer,
    progress::Stage,
};

/// How often a run that is waited for is looked at.
const POLL: Duration = Duration::from_millis(300);

/// The log that holds what the user's code prints.
pub const DRIVER_LOG: &str = "azureml-logs/70_driver_log.txt";

/// The same of the first process, of a run in several.
const FIRST_DRIVER_LOG: &str = "azureml-logs/70_driver_log_0.txt";

/// The log of what the user's code prints: of a run in several processes, that of the first one.
pub async fn driver_log(client: &Client, run: &str) -> Result<&'static str> {
    let details: Value = client.get_patiently(&client.azure("history/v1.0", &format!("/runs/{run}/details"))).await?;
    let asked = &details["runDefinition"];
    let number = |value: &Value| value.as_i64().unwrap_or(1);
    let processes = match asked["communicator"].as_str().unwrap_or_default() {
        "Mpi" => number(&asked["nodeCount"]) * number(&asked["mpi"]["processCountPerNode"]),
        "ParameterServer" => number(&asked["tensorflow"]["workerCount"]) + number(&asked["tensorflow"]["parameterServerCount"]),
        "Nccl" | "Gloo" => asked["pyTorch"]["processCount"].as_i64().unwrap_or_else(|| number(&asked["nodeCount"])),
        _ => number(&asked["nodeCount"]),
    };
    Ok(if processes > 1 { FIRST_DRIVER_LOG } else { DRIVER_LOG })
}

/// How a run stands.
pub struct Standing {
    /// The status word.
    pub status: String,
    /// The whole RunDto.
    pub run: Value,
}

impl Standing {
    /// Whether it has ended.
    pub fn is_terminal(&self) -> bool {
        matches!(self.status.as_str(), "Completed" | "Failed" | "Cancelled" | "Canceled")
    }

    /// Whether it ended well.
    pub fn is_completed(&self) -> bool {
        self.status == "Completed"
    }
}

/// The text of a member, empty when it is absent or null.
pub fn text(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or_default().to_owned()
}

/// Looks at a run, patiently.
pub async fn standing(client: &Client, run: &str) -> Result<Standing> {
    let run: Value = client.get_patiently(&client.azure("history/v1.0", &format!("/runs/{run}"))).await?;
    Ok(Standing { status: text(&run, "status"), run })
}

/// Waits for the end of a run.
pub async fn until_ended(client: &Client, run: &str) -> Result<Standing> {
    watch(client, run, |_| Ok(())).await
}

/// Waits for the end of a run, telling each new status word.
pub async fn watch(client: &Client, run: &str, mut tell: impl FnMut(&Standing) -> Result<()>) -> Result<Standing> {
    let mut last = String::new();
    loop {
        let standing = standing(client, run).await?;
        if standing.status != last {
            tell(&standing)?;
            last.clone_from(&standing.status);
        }
        if standing.is_terminal() {
            return Ok(standing);
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The log of the environment's build.
pub const BUILD_LOG: &str = "azureml-logs/20_image_build_log.txt";

/// Shows what a run waits for and prepares, until its code runs or it has ended.
pub async fn until_started(client: &Client, run: &str, printer: &Printer) -> Result<Standing> {
    let mut stage = Stage::new(printer);
    loop {
        let standing = standing(client, run).await?;
        if !matches!(standing.status.as_str(), "NotStarted" | "Queued" | "Starting" | "Preparing" | "Provisioning") {
            return Ok(standing);
        }
        stage.show(&standing.run);
        tokio::time::sleep(POLL).await;
    }
}

/// Follows the log of a build on standard error, below it what is done now, until the run has ended.
pub async fn build(client: &Client, run: &str, printer: &Printer) -> Result<Standing> {
    let stage = Mutex::new(Stage::new(printer));
    let print =
        |bytes: &[u8]| stage.lock().unwrap_or_else(PoisonError::into_inner).above(|| Ok(std::io::stderr().lock().write_all(bytes)?));
    let watch = async {
        loop {
            let standing = standing(client, run).await?;
            if standing.is_terminal() {
                return anyhow::Ok(());
            }
            stage.lock().unwrap_or_else(PoisonError::into_inner).show_bar(&standing.run);
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::try_join!(log(client, run, BUILD_LOG, print), watch)?;
    drop(stage);
    until_ended(client, run).await
}

/// Prints a log to its end while the run goes on. A log that does not exist by the end of the run is empty. When the run is tried again, the
/// log of the next attempt follows.
pub async fn log(client: &Client, run: &str, path: &str, print: impl Fn(&[u8]) -> Result<()>) -> Result<()> {
    let mut place = Place { run, path, offset: 0, attempt: None };
    let mut silent_since: Option<std::time::Instant> = None;
    loop {
        // Read before the log: if the run had ended by then, a log that is read to its end is complete.
        let ended = standing(client, run).await?.is_terminal();
        let before = place.offset;
        match stretch(client, &mut place, &print).await {
            Ok(Stretch::OfAnother) => tell_next_attempt()?,
            Ok(Stretch::Read) if ended => return Ok(()),
            Ok(Stretch::Read) => {
                silent_since = None;
                if place.offset == before {
                    tokio::time::sleep(POLL).await;
                }
            }
            Err(error) => {
                let since = *silent_since.get_or_insert_with(std::time::Instant::now);
                if !is_passing(&error) || (place.offset == before && since.elapsed() > PATIENCE) {
                    return Err(error);
                }
                tokio::time::sleep(POLL).await;
            }
        }
    }
}

/// How far a log was printed.
struct Place<'a> {
    run: &'a str,
    path: &'a str,
    offset: u64,
    /// The attempt whose log it is, once known.
    attempt: Option<String>,
}

/// What came of one request.
enum Stretch {
    /// Some more of the log was printed, or there was nothing more.
    Read,
    /// The log of another attempt stands there now; the place is its beginning.
    OfAnother,
}

/// Prints one uninterrupted stretch of a log. The place moves on also when it ends in an error.
async fn stretch(client: &Client, place: &mut Place<'_>, print: &impl Fn(&[u8]) -> Result<()>) -> Result<Stretch> {
    let mut address = client.native(&format!("/runs/{}/logs/{}?follow=true&offset={}", place.run, place.path, place.offset));
    if let Some(attempt) = &place.attempt {
        address.push_str(&format!("&attempt={attempt}"));
    }
    let response = client.send(client.request(Method::GET, &address).await?).await?;
    let attempt = response.headers().get(LOG_ATTEMPT_HEADER).and_then(|value| value.to_str().ok()).map(str::to_owned);
    if place.attempt.is_some() && attempt.is_some() && place.attempt != attempt {
        (place.attempt, place.offset) = (attempt, 0);
        return Ok(Stretch::OfAnother);
    }
    place.attempt = place.attempt.take().or(attempt);
    let mut body = response.bytes_stream();
    while let Some(chunk) = body.next().await {
        let chunk = chunk?;
        print(&chunk)?;
        place.offset += chunk.len() as u64;
    }
    Ok(Stretch::Read)
}

/// On standard error: it is not a part of the log.
fn tell_next_attempt() -> Result<()> {
    writeln!(std::io::stderr().lock(), "-- the run is tried again; the log of its next attempt follows --")?;
    Ok(())
}

/// Prints what there is of a log now.
pub async fn log_so_far(client: &Client, run: &str, path: &str, print: impl Fn(&[u8]) -> Result<()>) -> Result<()> {
    let address = client.native(&format!("/runs/{run}/logs/{path}"));
    let response = match client.send(client.request(Method::GET, &address).await?).await {
        Ok(response) => response,
        Err(error) if error.downcast_ref::<ApiError>().is_some_and(|error| error.status == StatusCode::NOT_FOUND) => {
            // Either the run is unknown (then this says so) or it has not written this log.
            let standing = standing(client, run).await?;
            bail!("{error}\nhint: the run is {}; `trainyard show {run}` lists its logs", standing.status);
        }
        Err(error) => return Err(error),
    };
    let mut body = response.bytes_stream();
    while let Some(chunk) = body.next().await {
        print(&chunk?)?;
    }
    Ok(())
}
