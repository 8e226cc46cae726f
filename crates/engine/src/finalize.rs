//! The end of an attempt: moves what it left in live files into the blob store, so that a terminal run's artifacts are content-addressed
//! like any other. Each step checks whether it is done already.

use std::ops::Range;

use trainyard_core::{
    Error, ErrorKind, Result,
    ids::{AttemptId, RunId, WorkspaceId},
    run::{Cause, RunEvent},
};
use trainyard_store::{Store, artifacts::Artifact, live_files::LiveKey, transitions::Applied};

use crate::{engine::Handle, hub::RunKey};

/// Closes the books of an attempt whose end is known: its files become artifacts, and then its run ends or waits for another try.
/// Done again, it changes nothing.
pub async fn finalize(store: &Store, engine: &Handle, attempt: (WorkspaceId, &RunId, AttemptId), at_us: i64) -> Result<()> {
    let (workspace, run, attempt) = attempt;
    adopt_live_files(store, (workspace, run, attempt), at_us).await?;
    trainyard_store::fail_point!("finalize.adopted");
    let Some(row) = store.run(workspace, run).await?.filter(|row| row.attempt == Some(attempt)) else { return Ok(()) };
    let policy = engine.retry_policy(row.definition.as_ref());
    if let Applied::Changed(run) = store.apply(workspace, run, &RunEvent::Finalized { attempt, policy }, at_us).await? {
        let cause = run.cause.as_ref().map(Cause::label);
        match run.not_before_us {
            Some(_) => tracing::info!(run = %run.id, %attempt, cause, "attempt ended; the run is tried again"),
            None => tracing::info!(run = %run.id, %attempt, state = run.state.as_str(), cause, "run ended"),
        }
    }
    trainyard_store::fail_point!("finalize.applied");
    engine.touch(&RunKey::new(workspace, run));
    engine.wake();
    Ok(())
}

/// Commits every artifact of the attempt that is still a live file to the blob store. Normally the agent has sealed all of them and nothing is
/// left to do; after a lost agent this keeps what had arrived.
async fn adopt_live_files(store: &Store, attempt: (WorkspaceId, &RunId, AttemptId), at_us: i64) -> Result<()> {
    let (workspace, run, attempt) = attempt;
    let container = format!("dcid.{run}");
    // Files without an attempt are from before a run could have several.
    for writer in [Some(attempt), None] {
        for path in store.live_files().list(workspace, run, writer).await? {
            match store.artifact(workspace, &container, &path).await? {
                Some(artifact) if artifact.digest.is_none() && artifact.attempt == writer => {
                    match seal(store, &artifact, at_us).await {
                        // Somebody else closed the attempt meanwhile, and has done all this.
                        Err(error) if error.kind() == ErrorKind::Forbidden => return Ok(()),
                        sealed => sealed?,
                    };
                }
                // Sealed already, or never announced: then nobody was told that it exists.
                Some(_) | None => {}
            }
        }
        store.live_files().remove_all(workspace, run, writer).await?;
    }
    Ok(())
}

/// Commits one live file to the blob store and points the artifact at it. Returns the artifact as it is now.
pub async fn seal(store: &Store, artifact: &Artifact, at_us: i64) -> Result<Artifact> {
    let key = LiveKey::of(artifact).ok_or_else(|| Error::internal("only files of a run's own container grow"))?;
    let mut staged = store.blobs().stage(u64::MAX).await?;
    let length = store.live_files().len(&key).await?.unwrap_or(0);
    for chunk in chunks(length) {
        staged.write(store.live_files().read(&key, chunk).await?).await?;
    }
    let stored = store.blobs().commit(staged.finish().await?).await?;
    let sealed = Artifact {
        size_bytes: i64::try_from(stored.size).unwrap_or(i64::MAX),
        digest: Some(stored.digest),
        updated_us: at_us,
        ..artifact.clone()
    };
    store.upsert_artifact(&sealed).await?;
    Ok(sealed)
}

const CHUNK_BYTES: usize = 1 << 20;

/// The ranges of at most [`CHUNK_BYTES`] that make up `length` bytes.
fn chunks(length: u64) -> impl Iterator<Item = Range<u64>> {
    (0..length).step_by(CHUNK_BYTES).map(move |start| start..length.min(start + CHUNK_BYTES as u64))
}
