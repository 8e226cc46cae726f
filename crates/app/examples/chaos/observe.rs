//! What a server says about the runs of a round, through its API: status, attempts, timeline, logs and outputs.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, TryStreamExt as _};
use reqwest::{Method, StatusCode};
use serde_json::Value;
use trainyard::client::{ApiError, Client};
use trainyard_core::run::Cause;
use trainyard_wire::native::{Attempt, Event, computes::Compute};

use crate::{plan::RunPlan, world::TARGET};

/// Where the code's own output is.
const LOG: &str = "azureml-logs/70_driver_log.txt";

/// Where its result is.
const OUTPUT: &str = "outputs/result.txt";

/// Runs that are asked about at the same time.
const AT_ONCE: usize = 6;

/// A run as the API shows it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Seen {
    pub(crate) status: String,
    /// The message of its error.
    pub(crate) error: Option<String>,
    /// In the order of their numbers.
    pub(crate) attempts: Vec<Tried>,
    /// Name and data, in order.
    pub(crate) timeline: Vec<(i64, String, Value)>,
}

/// One of its attempts.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tried {
    pub(crate) id: String,
    pub(crate) number: i64,
    pub(crate) cause: Option<Cause>,
    /// The output of the code; `None` if there is no such file.
    pub(crate) log: Option<String>,
    /// The content of its output.
    pub(crate) output: Option<String>,
}

/// How many runs of the target wait, and how many execute.
pub(crate) async fn load(client: &Client) -> Result<(u64, u32)> {
    let computes: Vec<Compute> = client.get(&client.native("/computes")).await?;
    let target = computes.into_iter().find(|compute| compute.name == TARGET).context("the target is gone")?;
    Ok((target.queued, target.busy))
}

/// Everything about the runs of a plan; a run that the server does not know is missing.
pub(crate) async fn runs(client: &Client, plans: &[RunPlan]) -> Result<BTreeMap<String, Seen>> {
    let seen = futures_util::stream::iter(plans).map(async |plan| Ok::<_, anyhow::Error>((plan.id.clone(), run(client, &plan.id).await?)));
    let seen: Vec<_> = seen.buffer_unordered(AT_ONCE).try_collect().await?;
    Ok(seen.into_iter().filter_map(|(id, seen)| Some((id, seen?))).collect())
}

async fn run(client: &Client, id: &str) -> Result<Option<Seen>> {
    let Some(dto) = optional(client.get::<Value>(&client.azure("history/v1.0", &format!("/runs/{id}"))).await)? else { return Ok(None) };
    let rows: Vec<Attempt> = client.get(&client.native(&format!("/runs/{id}/attempts"))).await?;
    let events: Vec<Event> = client.get(&client.native(&format!("/runs/{id}/events"))).await?;
    // The files of an attempt after which the run was to be tried again are kept under its number, also if no other came.
    let set_aside = events.iter().filter(|event| event.name.ends_with(".Retrying")).count();
    let mut attempts = Vec::with_capacity(rows.len());
    for (index, row) in rows.into_iter().enumerate() {
        let prefix = if index < set_aside { format!("attempts/{}/", row.number) } else { String::new() };
        attempts.push(Tried {
            id: row.id.to_string(),
            number: row.number,
            cause: row.cause.map(serde_json::from_value).transpose().context("a cause cannot be read")?,
            log: content(client, id, &format!("{prefix}{LOG}")).await?,
            output: content(client, id, &format!("{prefix}{OUTPUT}")).await?,
        });
    }
    Ok(Some(Seen {
        status: dto["status"].as_str().unwrap_or_default().to_owned(),
        error: dto["error"]["error"]["message"].as_str().map(str::to_owned),
        attempts,
        timeline: events.into_iter().map(|event| (event.seq, event.name, event.data)).collect(),
    }))
}

async fn content(client: &Client, run: &str, path: &str) -> Result<Option<String>> {
    let path = client.azure("artifact/v2.0", &format!("/artifacts/content/ExperimentRun/dcid.{run}/{path}"));
    let answer = client.send(client.request(Method::GET, &path).await?).await;
    Ok(match optional(answer)? {
        Some(answer) => Some(String::from_utf8_lossy(&answer.bytes().await?).into_owned()),
        None => None,
    })
}

/// `None` for what is not there.
fn optional<T>(answer: Result<T>) -> Result<Option<T>> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.downcast_ref::<ApiError>().is_some_and(|error| error.status == StatusCode::NOT_FOUND) => Ok(None),
        Err(error) => Err(error),
    }
}
