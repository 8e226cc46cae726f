//! What a check that repairs does. Without being told to, nothing.

use trainyard_core::{
    Error, Result,
    ids::{Digest, RunId},
};

use super::Checking;
use crate::{artifacts::Artifact, blobs::Stored, db::Sql, live_files::LiveKey, runs::RunWarning, writer::Lane};

/// A log is read in pieces of this size.
const PIECE_BYTES: u64 = 1 << 20;

/// What there is of a file that was never sealed.
pub(super) enum Sealed {
    /// It is this blob now.
    As(Digest),
    /// It is there; a check that repairs would seal it.
    There,
    /// Nothing.
    Nothing,
}

impl Checking<'_> {
    /// Runs a statement about an object of a workspace.
    pub(super) async fn mend(&self, text: &'static str, workspace: &str, object: &str) -> Result<()> {
        if !self.repairs() {
            return Ok(());
        }
        let sql = Sql::new(text).bind(workspace).bind(object);
        self.store.writer().write(Lane::Shared, move |conn| Box::pin(conn.execute(sql))).await.map(|_| ())
    }

    /// Makes a blob of what there is of an artifact that is a live file still, or removes its row and says so on the run.
    pub(super) async fn seal(&self, artifact: &Artifact, run: Option<&RunId>) -> Result<Sealed> {
        let found = self.live_file(artifact).await?;
        let Some(key) = found else {
            if self.repairs() {
                self.drop_row(artifact, run).await?;
            }
            return Ok(Sealed::Nothing);
        };
        if !self.repairs() {
            return Ok(Sealed::There);
        }
        let mut staged = self.store.blobs().stage(u64::MAX).await?;
        let mut from = 0;
        loop {
            let bytes = self.store.live_files().read(&key, from..from + PIECE_BYTES).await?;
            if bytes.is_empty() {
                break;
            }
            from += bytes.len() as u64;
            staged.write(bytes).await?;
        }
        let stored = self.store.blobs().commit(staged.finish().await?).await?;
        self.name_blob(artifact, &stored).await?;
        self.store.live_files().remove(&key).await?;
        Ok(Sealed::As(stored.digest))
    }

    /// The live file that an artifact without a digest stands for. Its path may have been moved to the folder of its attempt since.
    async fn live_file(&self, artifact: &Artifact) -> Result<Option<LiveKey>> {
        let Some(key) = LiveKey::of(artifact) else { return Ok(None) };
        let plain = artifact.path.strip_prefix("attempts/").and_then(|rest| rest.split_once('/')).map(|(_, path)| path.to_owned());
        let moved = plain.map(|path| LiveKey { path, ..key.clone() });
        for key in [Some(key), moved].into_iter().flatten() {
            if self.store.live_files().len(&key).await?.is_some() {
                return Ok(Some(key));
            }
        }
        Ok(None)
    }

    async fn name_blob(&self, artifact: &Artifact, stored: &Stored) -> Result<()> {
        let sql = Sql::new(
            "update artifacts set digest = $4, size_bytes = $5, updated_us = $6 where workspace = $1 and container = $2 and path = $3 \
             and digest is null",
        )
        .bind(artifact.workspace.to_string())
        .bind(artifact.container.as_str())
        .bind(artifact.path.as_str())
        .bind(stored.digest.as_str())
        .bind(i64::try_from(stored.size).map_err(Error::internal)?)
        .bind(self.now_us()?);
        self.store.writer().write(Lane::Shared, move |conn| Box::pin(conn.execute(sql))).await.map(|_| ())
    }

    async fn drop_row(&self, artifact: &Artifact, run: Option<&RunId>) -> Result<()> {
        if let Some(run) = run {
            // Said before it is gone: nothing is left out in silence.
            let message = format!("`{}` is lost: it was never stored completely, and `trainyard fsck` found nothing of it", artifact.path);
            self.store.add_run_warnings(artifact.workspace, run, &[RunWarning { source: "trainyard".into(), message }]).await?;
        }
        let sql = Sql::new("delete from artifacts where workspace = $1 and container = $2 and path = $3 and digest is null")
            .bind(artifact.workspace.to_string())
            .bind(artifact.container.as_str())
            .bind(artifact.path.as_str());
        self.store.writer().write(Lane::Shared, move |conn| Box::pin(conn.execute(sql))).await.map(|_| ())
    }

    /// Moves a damaged blob aside.
    pub(super) async fn set_aside(&self, digest: &Digest) -> Result<()> {
        if self.repairs() { self.store.blobs().set_aside(digest).await } else { Ok(()) }
    }
}
