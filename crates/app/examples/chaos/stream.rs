//! The clients of a round: they submit a stream of runs, each again until it is answered, and cancel some. A client that lost an answer
//! sends the same bytes with the same id.

use std::{
    io::Write as _,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use reqwest::{
    Method, StatusCode,
    multipart::{Form, Part},
};
use serde_json::json;
use tokio::task::JoinSet;
use trainyard::client::{ApiError, Client, is_passing};

use crate::{
    ledger::Ledger,
    plan::{End, RoundPlan, RunPlan, TIME_LIMIT_SECONDS},
    world::{SCRIPT, TARGET},
};

/// The experiment of all runs.
pub(crate) const EXPERIMENT: &str = "chaos";

/// Between two tries of a request.
const PAUSE: Duration = Duration::from_millis(40);

/// How long a request may stay without an answer. A paused server answers later than that, and so the client asks again.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a request is repeated: far longer than a round.
const PATIENCE: Duration = Duration::from_secs(120);

/// Submits and cancels everything in `plan`; returns when every submission was answered.
pub(crate) async fn run(client: Arc<Client>, plan: &RoundPlan, root: &Path, ledger: Arc<Ledger>) -> Result<()> {
    let began = tokio::time::Instant::now();
    let archive: Arc<[u8]> = archive()?.into();
    let mut tasks = JoinSet::new();
    for run in &plan.runs {
        let (client, ledger, archive, run) = (Arc::clone(&client), Arc::clone(&ledger), Arc::clone(&archive), run.clone());
        let definition = serde_json::to_vec(&definition(&run, root))?;
        tasks.spawn(async move {
            tokio::time::sleep_until(began + run.at).await;
            submit(&client, &run, (definition, &archive), &ledger).await?;
            if let Some(after) = run.cancel_after {
                tokio::time::sleep_until(began + run.at + after).await;
                cancel(&client, &run, &ledger).await?;
            }
            Ok::<_, anyhow::Error>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

async fn submit(client: &Client, run: &RunPlan, parts: (Vec<u8>, &[u8]), ledger: &Ledger) -> Result<()> {
    let path = client.azure("execution/v1.0", &format!("/experiments/{EXPERIMENT}/startrun?runId={}", run.id));
    let wish = Wish { client, what: format!("the submission of {}", run.id), path, parts: Some(parts) };
    wish.repeat_until_answered(ledger).await
}

async fn cancel(client: &Client, run: &RunPlan, ledger: &Ledger) -> Result<()> {
    ledger.note(|record| record.cancelled.insert(run.id.clone()));
    let path = client.azure("execution/v1.0", &format!("/experiments/{EXPERIMENT}/runId/{}/cancel", run.id));
    let wish = Wish { client, what: format!("the cancellation of {}", run.id), path, parts: None };
    wish.repeat_until_answered(ledger).await
}

/// A POST that is sent until it is answered.
struct Wish<'a> {
    client: &'a Client,
    /// For messages.
    what: String,
    path: String,
    /// Definition and archive of a submission.
    parts: Option<(Vec<u8>, &'a [u8])>,
}

impl Wish<'_> {
    /// Repeats the request while nobody answers, or the answer is that the server cannot now. Any other answer that is no success is
    /// written down as a refusal.
    async fn repeat_until_answered(&self, ledger: &Ledger) -> Result<()> {
        let began = Instant::now();
        loop {
            match self.send().await {
                Ok(_) => return Ok(()),
                Err(error) if is_passing(&error) || is_full(&error) || is_slow(&error) => {
                    if began.elapsed() > PATIENCE {
                        return Err(error).with_context(|| format!("{} was not answered within {} s", self.what, PATIENCE.as_secs()));
                    }
                }
                Err(error) => {
                    ledger.note(|record| record.refused.push(format!("{}: {error:#}", self.what)));
                    return Ok(());
                }
            }
            ledger.note(|record| record.resubmitted += 1);
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn send(&self) -> Result<reqwest::Response> {
        let request = self.client.request(Method::POST, &self.path).await?.timeout(ANSWER_TIMEOUT);
        let request = match &self.parts {
            Some((definition, archive)) => request.multipart(
                Form::new()
                    .part("runDefinitionFile", Part::bytes(definition.clone()).file_name("definition.json"))
                    .part("projectZipFile", Part::bytes(archive.to_vec()).file_name("project.zip")),
            ),
            None => request,
        };
        self.client.send(request).await
    }
}

fn is_full(error: &anyhow::Error) -> bool {
    error.downcast_ref::<ApiError>().is_some_and(|error| error.status == StatusCode::INSUFFICIENT_STORAGE)
}

fn is_slow(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<ApiError>()
        .is_some_and(|error| matches!(error.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT))
}

fn definition(run: &RunPlan, root: &Path) -> serde_json::Value {
    let (end, value) = match run.end {
        End::Exit(code) => ("exit", code),
        End::Signal(signal) => ("signal", signal),
        End::TimeLimit => ("exit", 0),
    };
    let words = [
        root.join("lines").display().to_string(),
        root.join("said").display().to_string(),
        run.lines.to_string(),
        format!("{:.3}", run.sleep.as_secs_f64()),
        end.to_owned(),
        value.to_string(),
    ];
    let mut configuration = json!({
        "Script": "run.sh", "Arguments": words, "Framework": "Python", "Communicator": "None", "Target": TARGET, "NodeCount": 1,
        "Environment": { "Python": { "InterpreterPath": "/bin/sh", "UserManagedDependencies": true } },
        "History": { "OutputCollection": true },
    });
    if run.end == End::TimeLimit {
        configuration["MaxRunDurationSeconds"] = TIME_LIMIT_SECONDS.into();
    }
    if run.user_retries > 0 {
        configuration["Retries"] = json!({ "UserCode": run.user_retries });
    }
    json!({ "Configuration": configuration })
}

fn archive() -> Result<Vec<u8>> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    zip.start_file("run.sh", zip::write::SimpleFileOptions::default())?;
    zip.write_all(SCRIPT.as_bytes())?;
    Ok(zip.finish()?.into_inner())
}
