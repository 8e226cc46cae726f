//! Asks Slurm whether it would take a job with some options, before a run that needs them is stored.

use trainyard_core::slurm::SlurmWish;

use super::{
    super::asking::{Answer, PATIENCE},
    submission::{is_for_now, shape},
    tools::{Call, Failure, Printed, Tools},
};

/// The options of a job, and on how many nodes.
pub(super) type Question = (SlurmWish, u32);

/// What `sbatch --test-only` says both to a job that no node could ever run and to one whose nodes are all drained or down just now.
const NEVER_OR_NOT_NOW: &str = "requested node configuration is not available";

pub(super) async fn ask(tools: &Tools, job: &Question) -> Answer {
    match call(tools, job, ("sbatch", &arguments(&["--test-only"], job))).await {
        Ok(_) => Answer::Fine,
        Err(Failure::Refused(words)) if words.to_lowercase().contains(NEVER_OR_NOT_NOW) => try_it(tools, job).await,
        // It may fit when less is in use.
        Err(Failure::Refused(words)) if is_for_now(&words) => Answer::Fine,
        Err(Failure::Refused(words)) => Answer::Refused(words),
        Err(Failure::NoAnswer(words)) => Answer::Unknown(words),
    }
}

/// A job for tomorrow that is taken back at once: Slurm takes it if some node could run it, whatever state the nodes are in.
async fn try_it(tools: &Tools, job: &Question) -> Answer {
    let tomorrow = ["--parsable", "--begin=now+1day", "--output=/dev/null"];
    match call(tools, job, ("sbatch", &arguments(&tomorrow, job))).await {
        Ok(printed) => {
            let id = printed.text.trim().split(';').next().unwrap_or_default().to_owned();
            if let Err(failure) = call(tools, job, ("scancel", &[id])).await {
                tracing::warn!(error = failure.words(), "a trial job could not be taken back; it does nothing");
            }
            Answer::Fine
        }
        Err(Failure::Refused(words)) if is_for_now(&words) => Answer::Fine,
        Err(Failure::Refused(words)) => Answer::Refused(words),
        Err(Failure::NoAnswer(words)) => Answer::Unknown(words),
    }
}

/// Whoever the job will belong to is asked for.
async fn call(tools: &Tools, (wish, _): &Question, (tool, arguments): (&'static str, &[String])) -> Result<Printed, Failure> {
    tools.call(Call { tool, arguments, user: wish.submit_as.as_ref(), input: None, limit: PATIENCE }).await
}

fn arguments(how: &[&str], (wish, nodes): &Question) -> Vec<String> {
    let fixed = how.iter().chain(&["--job-name=trainyard-check"]).map(|word| (*word).to_owned());
    fixed.chain(shape(*nodes)).chain(wish.options()).chain(["--wrap=true".to_owned()]).collect()
}
