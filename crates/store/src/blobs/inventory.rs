//! What is there, for checks: all blobs, what is staged for too long, and a place for blobs that are damaged.

use std::{
    future::ready,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{
    StreamExt as _, TryStreamExt as _,
    stream::{self, BoxStream},
};
use object_store::{ObjectStoreExt as _, path::Path as Key};
use trainyard_core::{Error, ErrorKind, Result, ids::Digest};

use super::{Blobs, Place, failed, folder::Folder, storage_error};

/// The folder, beside those of the digests, of blobs whose content is not what their name says.
const DAMAGED: &str = "damaged";

/// A blob as it lies at its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its address.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// When it was written.
    pub modified: SystemTime,
}

impl Blobs {
    /// Every blob, in no order. What is no blob (the damaged ones, for example) is left out.
    pub fn list(&self) -> BoxStream<'static, Result<Listed>> {
        match &self.0.place {
            Place::Folder(folder) => {
                let packed = list_packs(folder.clone());
                let folder = folder.clone();
                let files = self.list_addresses(None);
                // In this order: what the packs hold is known before files are compared with it.
                packed.chain(files.try_filter(move |blob| ready(!folder.may_hold(&blob.digest)))).boxed()
            }
            Place::Bucket(prefix) => self.list_addresses(Some(prefix)),
        }
    }

    fn list_addresses(&self, prefix: Option<&Key>) -> BoxStream<'static, Result<Listed>> {
        let listed = self.0.store.list(prefix);
        listed
            .filter_map(|found| async {
                match found {
                    Ok(meta) => {
                        let digest = address(&meta.location)?;
                        let modified = u64::try_from(meta.last_modified.timestamp_millis()).unwrap_or_default();
                        Some(Ok(Listed { digest, size: meta.size, modified: SystemTime::UNIX_EPOCH + Duration::from_millis(modified) }))
                    }
                    Err(error) => Some(Err(Error::new(ErrorKind::Unavailable, "the blobs cannot be listed").with_source(error))),
                }
            })
            .boxed()
    }

    /// Moves a blob away from its address, so that nobody is given its content and the same content can be stored again.
    pub async fn set_aside(&self, digest: &Digest) -> Result<()> {
        if let Some(packed) = self.packed(digest).await? {
            let content = packed.content().map_err(|error| storage_error("a damaged blob cannot be read", error))?;
            let aside = Key::from_iter([DAMAGED, digest.as_str()]);
            self.0.store.put(&aside, content.into()).await.map_err(|error| failed(digest, error))?;
            return self.delete(digest).await;
        }
        let aside = match &self.0.place {
            Place::Folder(_) => Key::from_iter([DAMAGED, digest.as_str()]),
            Place::Bucket(prefix) => prefix.clone().join(DAMAGED).join(digest.as_str()),
        };
        self.0.store.rename(&self.key(digest), &aside).await.map_err(|error| failed(digest, error))
    }

    /// What lies in the staging folder since before `older_than`.
    pub async fn stale_staging(&self, older_than: SystemTime) -> Result<Vec<PathBuf>> {
        let staging = self.0.staging.clone();
        tokio::task::spawn_blocking(move || staging.stale(older_than))
            .await
            .map_err(Error::internal)?
            .map_err(|error| storage_error("the staging folder cannot be read", error))
    }
}

/// Every blob in a pack, pack by pack.
fn list_packs(folder: Arc<Folder>) -> BoxStream<'static, Result<Listed>> {
    let cannot = |error| storage_error("the blobs cannot be listed", error);
    stream::once(async move {
        let count = folder.packs().await.map_err(cannot)?;
        let packs = stream::iter(0..count).then(move |number| {
            let folder = folder.clone();
            async move { folder.list_pack(number).await.map(|blobs| stream::iter(blobs.into_iter().map(Ok))).map_err(cannot) }
        });
        Ok::<_, Error>(packs.try_flatten())
    })
    .try_flatten()
    .boxed()
}

/// The digest of a blob at its proper address.
fn address(key: &Key) -> Option<Digest> {
    let parts: Vec<_> = key.parts().collect();
    let [.., shard, name] = parts.as_slice() else { return None };
    let digest = Digest::new(name.as_ref()).ok()?;
    (shard.as_ref() == &digest.as_str()[..2]).then_some(digest)
}
