//! The blobs of a server on its own disk: large ones as files at their addresses, small ones in packs.

use std::{
    fs, io,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use trainyard_core::ids::Digest;

use super::{
    Listed, StagedBlob, StagedContent,
    packs::{Packed, Packs},
    staging::{IN_MEMORY_BYTES, Staging, TempFile},
    sync_folder,
};

/// The folder of the packs, beside those of the digests.
const PACKS: &str = "packs";

/// The folder of the blobs, with a folder in it for each first byte of a digest.
pub(super) struct Folder {
    path: PathBuf,
    packs: Packs,
    /// Which of these folders survive a power cut: not known before this process synced the folder above.
    durable: [AtomicBool; 256],
    /// Held while a file at an address is replaced, which is rare.
    replacing: Mutex<()>,
}

impl Folder {
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        let packs = Packs::open(path.join(PACKS))?;
        Ok(Self { packs, path, durable: [const { AtomicBool::new(false) }; 256], replacing: Mutex::new(()) })
    }

    /// Puts an upload where it stays, synced.
    pub(super) async fn commit(self: &Arc<Self>, staged: StagedBlob, staging: &Arc<Staging>) -> io::Result<()> {
        let content = match staged.content() {
            StagedContent::Memory(bytes) if bytes.len() <= IN_MEMORY_BYTES => Some(bytes.clone()),
            StagedContent::Memory(_) | StagedContent::File(_) => None,
        };
        let Some(content) = content else {
            let staging = staging.clone();
            // One task for all steps: between threads they would wait longer than they run.
            return self.blocking(move |folder| folder.commit_file(staged, &staging)).await;
        };
        if self.holds(staged.digest(), &content).await? { Ok(()) } else { self.packs.append(staged.digest(), content).await }
    }

    /// Whether a pack holds this content already: no two rows need name two copies of it.
    async fn holds(self: &Arc<Self>, digest: &Digest, content: &Bytes) -> io::Result<bool> {
        if !self.packs.may_hold(digest) {
            return Ok(false);
        }
        let (digest, content) = (digest.clone(), content.clone());
        self.blocking(move |folder| folder.packs.holds(&digest, &content)).await
    }

    /// What `look` finds in the packs.
    pub(super) async fn packed(
        self: &Arc<Self>,
        digest: &Digest,
        look: fn(&Packs, &Digest) -> io::Result<Option<Packed>>,
    ) -> io::Result<Option<Packed>> {
        let digest = digest.clone();
        self.blocking(move |folder| look(&folder.packs, &digest)).await
    }

    pub(super) async fn remove_packed(self: &Arc<Self>, digest: &Digest) -> io::Result<bool> {
        let digest = digest.clone();
        self.blocking(move |folder| folder.packs.remove(&digest)).await
    }

    /// Whether a pack has it. A file at its address, of an older version, is a second copy then.
    pub(super) fn may_hold(&self, digest: &Digest) -> bool {
        self.packs.may_hold(digest)
    }

    /// How many packs there are.
    pub(super) async fn packs(self: &Arc<Self>) -> io::Result<u32> {
        self.blocking(|folder| folder.packs.count()).await
    }

    /// The blobs of one of them.
    pub(super) async fn list_pack(self: &Arc<Self>, number: u32) -> io::Result<Vec<Listed>> {
        self.blocking(move |folder| folder.packs.list(number)).await
    }

    async fn blocking<T: Send + 'static>(self: &Arc<Self>, task: impl FnOnce(&Self) -> io::Result<T> + Send + 'static) -> io::Result<T> {
        let folder = self.clone();
        tokio::task::spawn_blocking(move || task(&folder)).await.map_err(io::Error::other)?
    }

    /// A large upload is a staged file already, and is renamed.
    fn commit_file(&self, staged: StagedBlob, staging: &Staging) -> io::Result<()> {
        let shard = self.shard(staged.digest())?;
        let target = shard.join(staged.digest().as_str());
        if !target.metadata().is_ok_and(|there| there.is_file() && there.len() == staged.size()) {
            let temp: TempFile = staged.into_file(staging)?;
            temp.file().sync_data()?;
            let _alone = self.replacing.lock().unwrap_or_else(PoisonError::into_inner);
            temp.rename(&target)?;
        }
        crate::fail_point!("blob.written", io)?;
        // Of a blob that is there already too: whoever made it may not have come to this yet.
        sync_folder(&shard)
    }

    /// The folder for a digest, made if this is the first that needs it.
    fn shard(&self, digest: &Digest) -> io::Result<PathBuf> {
        let name = &digest.as_str()[..2];
        let path = self.path.join(name);
        let durable = &self.durable[usize::from_str_radix(name, 16).expect("a digest is hexadecimal")];
        if !durable.load(Ordering::Acquire) {
            match fs::create_dir(&path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => sync_folder(&self.path)?,
            }
            durable.store(true, Ordering::Release);
        }
        Ok(path)
    }
}
