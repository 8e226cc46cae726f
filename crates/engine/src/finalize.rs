//! Moves what an attempt left in live files into the blob store, so that a terminal run's artifacts are content-addressed
//! like any other. Each step checks whether it is done already.

use std::ops::Range;

use trainyard_core::{
    Result,
    ids::{RunId, WorkspaceId},
};
use trainyard_store::{Store, artifacts::Artifact, live_files::LiveKey};

/// Commits every artifact of `run` that is still a live file to the blob store. Normally the agent has sealed all of them and nothing is left to do;
/// after a lost agent this keeps what had arrived.
pub async fn adopt_live_files(store: &Store, workspace: WorkspaceId, run: &RunId, at_us: i64) -> Result<()> {
    let container = format!("dcid.{run}");
    for path in store.live_files().list(workspace, run).await? {
        match store.artifact(workspace, &container, &path).await? {
            Some(artifact) if artifact.digest.is_none() => {
                seal(store, &artifact, run, at_us).await?;
            }
            // Sealed already, or never announced: then nobody was told that it exists.
            Some(_) | None => {}
        }
    }
    store.live_files().remove_run(workspace, run).await
}

/// Commits one live file to the blob store and points the artifact at it. Returns the artifact as it is now.
pub async fn seal(store: &Store, artifact: &Artifact, run: &RunId, at_us: i64) -> Result<Artifact> {
    let key = LiveKey { workspace: artifact.workspace, run: run.clone(), path: artifact.path.clone() };
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
