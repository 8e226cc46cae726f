//! Asks Slurm whether it would take a job with some options, before a run that needs them is stored.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use trainyard_core::{Error, Result, slurm::SlurmWish};

use super::{
    submission::{is_for_now, shape},
    tools::{Failure, Tools},
};

/// How long a client waits for Slurm's word.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long an answer holds: hundreds of runs with the same options are one question.
const HOLDS: Duration = Duration::from_secs(20);

/// What Slurm said to a set of options.
#[derive(Clone, Debug)]
enum Answer {
    Fine,
    Refused(String),
    Unknown(String),
}

type Slot = Arc<tokio::sync::Mutex<Option<(Instant, Answer)>>>;

/// Answers of the last seconds.
#[derive(Debug, Default)]
pub(super) struct Checks {
    slots: Mutex<HashMap<(SlurmWish, u32), Slot>>,
}

impl Checks {
    /// Asks about a job with some options on so many nodes. A warning, where Slurm did not answer in good time.
    ///
    /// # Errors
    /// [`trainyard_core::ErrorKind::Invalid`] with Slurm's own sentence.
    pub(super) async fn ask(&self, tools: &Tools, job: (SlurmWish, u32)) -> Result<Option<String>> {
        let slot = self.slot(&job);
        // Who comes while the question is under way waits for its answer.
        let mut slot = slot.lock().await;
        let answer = match slot.as_ref().filter(|(at, _)| at.elapsed() < HOLDS) {
            Some((_, answer)) => answer.clone(),
            None => {
                let answer = ask(tools, &job).await;
                *slot = Some((Instant::now(), answer.clone()));
                answer
            }
        };
        match answer {
            Answer::Fine => Ok(None),
            Answer::Refused(words) => {
                Err(Error::invalid(format!("Slurm does not take this run: {words}")).with_target("Configuration.Slurm"))
            }
            Answer::Unknown(words) => {
                Ok(Some(format!("Slurm could not be asked whether it takes this run, which is submitted all the same: {words}")))
            }
        }
    }

    fn slot(&self, job: &(SlurmWish, u32)) -> Slot {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        // Old answers go when a new question comes; one that is being asked is locked and stays.
        slots.retain(|_, slot| {
            slot.try_lock().map_or(true, |slot| slot.as_ref().is_none_or(|(at, _)| at.elapsed() < HOLDS)) || Arc::strong_count(slot) > 1
        });
        Arc::clone(slots.entry(job.clone()).or_default())
    }
}

/// What `sbatch --test-only` says both to a job that no node could ever run and to one whose nodes are all drained or down just now.
const NEVER_OR_NOT_NOW: &str = "requested node configuration is not available";

async fn ask(tools: &Tools, job: &(SlurmWish, u32)) -> Answer {
    match tools.run("sbatch", &arguments(&["--test-only"], job), PATIENCE).await {
        Ok(_) => Answer::Fine,
        Err(Failure::Refused(words)) if words.to_lowercase().contains(NEVER_OR_NOT_NOW) => try_it(tools, job).await,
        // It may fit when less is in use.
        Err(Failure::Refused(words)) if is_for_now(&words) => Answer::Fine,
        Err(Failure::Refused(words)) => Answer::Refused(words),
        Err(Failure::NoAnswer(words)) => Answer::Unknown(words),
    }
}

/// A job for tomorrow that is taken back at once: Slurm takes it if some node could run it, whatever state the nodes are in.
async fn try_it(tools: &Tools, job: &(SlurmWish, u32)) -> Answer {
    let tomorrow = ["--parsable", "--begin=now+1day", "--output=/dev/null"];
    match tools.run("sbatch", &arguments(&tomorrow, job), PATIENCE).await {
        Ok(printed) => {
            let id = printed.text.trim().split(';').next().unwrap_or_default().to_owned();
            if let Err(failure) = tools.run("scancel", &[id], PATIENCE).await {
                tracing::warn!(error = failure.words(), "a trial job could not be taken back; it does nothing");
            }
            Answer::Fine
        }
        Err(Failure::Refused(words)) if is_for_now(&words) => Answer::Fine,
        Err(Failure::Refused(words)) => Answer::Refused(words),
        Err(Failure::NoAnswer(words)) => Answer::Unknown(words),
    }
}

fn arguments(how: &[&str], (wish, nodes): &(SlurmWish, u32)) -> Vec<String> {
    let fixed = how.iter().chain(&["--job-name=trainyard-check"]).map(|word| (*word).to_owned());
    fixed.chain(shape(*nodes)).chain(wish.options()).chain(["--wrap=true".to_owned()]).collect()
}
