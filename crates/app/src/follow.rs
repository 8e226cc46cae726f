//! Waiting for a run and following its log, across restarts of the server.
//!
//! A log is asked for from the byte after the last one printed, so that nothing is lost or repeated whenever the connection is cut.

use std::time::Duration;

use anyhow::{Result, bail};
use futures_util::StreamExt as _;
use reqwest::{Method, StatusCode};
use serde_json::Value;

use crate::client::{ApiError, Client, PATIENCE, is_passing};

/// How often a run that is waited for is looked at.
const POLL: Duration = Duration::from_millis(300);

/// The log that holds what the user's code prints.
pub const DRIVER_LOG: &str = "azureml-logs/70_driver_log.txt";

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

/// Prints a log to its end while the run goes on. A log that does not exist by the end of the run is empty.
pub async fn log(client: &Client, run: &str, path: &str, print: impl Fn(&[u8]) -> Result<()>) -> Result<()> {
    let mut offset = 0u64;
    let mut silent_since: Option<std::time::Instant> = None;
    loop {
        // Read before the log: if the run had ended by then, a log that is read to its end is complete.
        let ended = standing(client, run).await?.is_terminal();
        match stretch(client, &Place { run, path, offset }, &print).await {
            Ok(count) => {
                offset += count;
                silent_since = None;
                if ended {
                    return Ok(());
                }
            }
            Err((count, error)) => {
                offset += count;
                let since = *silent_since.get_or_insert_with(std::time::Instant::now);
                if !is_passing(&error) || (count == 0 && since.elapsed() > PATIENCE) {
                    return Err(error);
                }
                tokio::time::sleep(POLL).await;
            }
        }
    }
}

struct Place<'a> {
    run: &'a str,
    path: &'a str,
    offset: u64,
}

/// Prints one uninterrupted stretch of a log. Gives how many bytes were printed, also when it ends in an error.
async fn stretch(client: &Client, place: &Place<'_>, print: &impl Fn(&[u8]) -> Result<()>) -> Result<u64, (u64, anyhow::Error)> {
    let Place { run, path, offset } = place;
    let address = client.native(&format!("/runs/{run}/logs/{path}?follow=true&offset={offset}"));
    let request = client.request(Method::GET, &address).await.map_err(|error| (0, error))?;
    let response = client.send(request).await.map_err(|error| (0, error))?;
    let mut body = response.bytes_stream();
    let mut count = 0;
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|error| (count, error.into()))?;
        print(&chunk).map_err(|error| (count, error))?;
        count += chunk.len() as u64;
    }
    Ok(count)
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
