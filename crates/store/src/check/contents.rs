//! What must hold between rows and what lies in the blob store, among the live files and in the staging folder.

use std::{collections::HashSet, path::PathBuf};

use futures_util::TryStreamExt as _;
use sha2::{Digest as _, Sha256};
use trainyard_core::{
    Error, ErrorKind, Result,
    ids::{Digest, RunId, WorkspaceId},
    run::RunState,
};

use super::{Checking, Depth, Repair, repair::Sealed};
use crate::{
    artifacts::{self, Artifact},
    db::{Row, Sql, Value},
    live_files::LiveKey,
    progress::Unit,
    run_row,
};

/// Rows that are read at once.
const ROWS: i64 = 500;

/// A blob as it lies there. Compact: there may be millions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Present {
    sha256: [u8; 32],
    size: u64,
    named: bool,
    old: bool,
}

/// Every blob that is there, in the order of the digests.
struct Inventory(Vec<Present>);

impl Inventory {
    /// Notes that a row names the blob; its size if it is there.
    fn name(&mut self, digest: &Digest) -> Result<Option<u64>> {
        let sha256 = sha256(digest)?;
        Ok(self.0.binary_search_by(|blob| blob.sha256.cmp(&sha256)).ok().map(|at| {
            self.0[at].named = true;
            self.0[at].size
        }))
    }
}

fn sha256(digest: &Digest) -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(digest.as_str(), &mut bytes).map_err(Error::internal)?;
    Ok(bytes)
}

impl Checking<'_> {
    pub(super) async fn contents(&mut self) -> Result<()> {
        let mut inventory = self.inventory().await?;
        self.snapshots(&mut inventory).await?;
        let growing = self.artifacts(&mut inventory).await?;
        if self.check.depth == Depth::Contents {
            self.damaged(&inventory).await?;
        }
        self.orphans(&inventory).await?;
        self.orphan_live_files(&growing).await?;
        self.stale_staging().await
    }

    async fn inventory(&self) -> Result<Inventory> {
        self.begin("listing blobs", 0, Unit::Count);
        let (mut found, mut listed) = (Vec::new(), self.store.blobs().list());
        let old = self.old();
        while let Some(blob) = listed.try_next().await? {
            found.push(Present { sha256: sha256(&blob.digest)?, size: blob.size, named: false, old: blob.modified < old });
            self.check.progress.advance(1);
        }
        found.sort_unstable();
        Ok(Inventory(found))
    }

    async fn snapshots(&mut self, inventory: &mut Inventory) -> Result<()> {
        let mut after: Option<(String, String)> = None;
        loop {
            let mut sql = Sql::new("select workspace, id, digest, size_bytes from snapshots");
            if let Some((workspace, id)) = &after {
                sql.push(" where (workspace, id) > ").push_row([Value::from(workspace.as_str()), Value::from(id.as_str())]);
            }
            sql.push(" order by workspace, id").push_limit(ROWS);
            let rows = self.store.reader().await?.fetch_all(sql).await?;
            for row in &rows {
                let mut row = row.columns();
                let (workspace, id, digest, size) = (row.text()?, row.text()?, row.parse::<Digest>()?, row.int()?);
                self.blob(inventory, &digest, (size, &format!("the snapshot {workspace}/{id}"))).await?;
                after = Some((workspace, id));
            }
            if rows.is_empty() {
                return Ok(());
            }
        }
    }

    /// Every artifact; where the live files of those lie that are no blobs yet, and rightly so.
    async fn artifacts(&mut self, inventory: &mut Inventory) -> Result<HashSet<PathBuf>> {
        let mut growing = HashSet::new();
        let mut after: Option<Artifact> = None;
        self.begin("checking files of runs", 0, Unit::Count);
        loop {
            let rows = artifacts::after(&mut self.store.reader().await?, after.as_ref(), ROWS).await?;
            for artifact in &rows {
                match &artifact.digest {
                    Some(digest) => {
                        let whose = format!("{} of {}/{}", artifact.path, artifact.workspace, artifact.container);
                        self.blob(inventory, digest, (artifact.size_bytes, &whose)).await?;
                    }
                    None => {
                        if let Some(sealed) = self.unsealed(artifact, &mut growing).await? {
                            // It may have been there, named by nothing.
                            inventory.name(&sealed)?;
                        }
                    }
                }
            }
            self.check.progress.advance(rows.len() as u64);
            let Some(last) = rows.into_iter().next_back() else { return Ok(growing) };
            after = Some(last);
        }
    }

    async fn blob(&mut self, inventory: &mut Inventory, digest: &Digest, (size, whose): (i64, &str)) -> Result<()> {
        let present = match inventory.name(digest)? {
            Some(present) => Some(present),
            // It may have been stored after the list was made.
            None => self.store.blobs().size(digest).await?,
        };
        match present {
            None => self.find("blob_missing", digest.as_str(), format!("the content of {whose} is not there"), Repair::Impossible),
            Some(present) if i64::try_from(present).ok() != Some(size) => {
                let sentence = format!("the content of {whose} has {present} bytes instead of {size}");
                self.find("blob_size", digest.as_str(), sentence, Repair::Impossible);
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// An artifact that is a live file: right while its run is not over. The blob that it was made into.
    async fn unsealed(&mut self, artifact: &Artifact, growing: &mut HashSet<PathBuf>) -> Result<Option<Digest>> {
        let run = artifact.run();
        let state = match &run {
            Some(run) => self.state_of(artifact.workspace, run).await?,
            None => None,
        };
        if state.is_some_and(|state| !state.is_terminal()) {
            growing.extend(LiveKey::of(artifact).and_then(|key| self.store.live_files().locate(&key).ok()));
            return Ok(None);
        }
        let object = format!("{}/{}/{}", artifact.workspace, artifact.container, artifact.path);
        let known = run.filter(|_| state.is_some());
        let sealed = self.seal(artifact, known.as_ref()).await?;
        let sentence = match sealed {
            Sealed::As(_) | Sealed::There => "the file of a run that is over was never sealed; what arrived of it is there",
            Sealed::Nothing => {
                "the file of a run that is over was never sealed, and nothing of it is there; its entry goes, with a warning on the run"
            }
        };
        self.find("unsealed_artifact", object, sentence, self.repaired());
        Ok(if let Sealed::As(digest) = sealed { Some(digest) } else { None })
    }

    async fn state_of(&self, workspace: WorkspaceId, run: &RunId) -> Result<Option<RunState>> {
        let sql = Sql::new("select state from runs where workspace = $1 and id = $2").bind(workspace.to_string()).bind(run.as_str());
        let row: Option<Row> = self.store.reader().await?.fetch_optional(sql).await?;
        row.map(|row| run_row::state(&mut row.columns())).transpose()
    }

    async fn damaged(&mut self, inventory: &Inventory) -> Result<()> {
        let named = || inventory.0.iter().filter(|blob| blob.named);
        self.begin("reading blobs", named().map(|blob| blob.size).sum(), Unit::Bytes);
        for blob in named() {
            let digest = Digest::new(hex::encode(blob.sha256)).map_err(Error::internal)?;
            if !self.holds_its_content(&digest).await? {
                self.set_aside(&digest).await?;
                let sentence = "the content is not what its name says; it is moved to `damaged/`, so that nobody is given it";
                self.find("blob_damaged", digest.as_str(), sentence, self.repaired());
            }
            self.check.progress.advance(blob.size);
        }
        Ok(())
    }

    async fn holds_its_content(&self, digest: &Digest) -> Result<bool> {
        let mut reader = match self.store.blobs().read(digest, None).await {
            Ok(reader) => reader,
            // Told of already, as missing.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(true),
            Err(error) => return Err(error),
        };
        let mut hasher = Sha256::new();
        while let Some(piece) = reader.stream.try_next().await? {
            hasher.update(&piece);
        }
        Ok(hex::encode(hasher.finalize()) == digest.as_str())
    }

    async fn orphans(&mut self, inventory: &Inventory) -> Result<()> {
        for blob in inventory.0.iter().filter(|blob| !blob.named && blob.old) {
            let digest = Digest::new(hex::encode(blob.sha256)).map_err(Error::internal)?;
            if self.repairs() {
                self.store.blobs().delete(&digest).await?;
            }
            let sentence = format!("no row names this blob of {} bytes", blob.size);
            self.find("orphan_blob", digest.as_str(), sentence, self.repaired());
        }
        Ok(())
    }

    async fn orphan_live_files(&mut self, growing: &HashSet<PathBuf>) -> Result<()> {
        for path in self.store.live_files().older_than(self.old()).await? {
            if growing.contains(&path) {
                continue;
            }
            if self.repairs() {
                self.store.live_files().remove_file(path.clone()).await?;
            }
            self.find("orphan_live_file", path.display().to_string(), "no file of a run that is not over lies here", self.repaired());
        }
        Ok(())
    }

    async fn stale_staging(&mut self) -> Result<()> {
        let stale = self.store.blobs().stale_staging(self.old()).await?;
        if self.repairs() {
            self.store.blobs().sweep_staging(self.old()).await?;
        }
        for path in stale {
            self.find("stale_upload", path.display().to_string(), "an upload that never came to its end", self.repaired());
        }
        Ok(())
    }
}
