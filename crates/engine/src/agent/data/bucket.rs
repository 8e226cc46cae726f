//! Objects of an S3 bucket: an object, or everything below a prefix, each fetched into a file and gone on with where it broke off; and the way back.

use std::{collections::HashSet, io, io::Write as _, path::Path, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::{
    Error as StoreError, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt as _, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder},
    buffered::BufWriter,
    path::Path as Key,
};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;
use trainyard_core::data::relative_path;

use super::{
    fault::{Fault, Reached},
    journal::Meter,
    partial::Partial,
};
use crate::{agent::outputs::digest, data::S3Keys};

/// For how long the client itself repeats a request.
const RETRY: Duration = Duration::from_secs(20);

/// Objects that begin before others and hold nothing stand for folders.
const FOLDER_MARK: u64 = 0;

/// A bucket and where in it everything lies that somebody asked for.
#[derive(Clone, Debug)]
pub(super) struct Bucket {
    store: Arc<AmazonS3>,
    key: Key,
    /// For sentences: `s3://bucket/key`.
    shown: String,
}

/// What there is at a key.
#[derive(Debug)]
pub(super) enum Listing {
    /// The object itself.
    Object(ObjectMeta),
    /// The objects below it, with their paths there.
    Below {
        /// What can be files.
        objects: Vec<(String, ObjectMeta)>,
        /// What cannot, a sentence each.
        left_out: Vec<String>,
    },
}

impl Bucket {
    /// The place `path` below `url`, which is `s3://bucket/prefix`.
    pub(super) fn open(url: &str, path: &str, keys: &S3Keys) -> Result<Self, Fault> {
        let rest = url.get("s3://".len()..).unwrap_or_default();
        let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let joined = format!("{prefix}/{path}");
        let joined = joined.split('/').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/");
        let shown = format!("s3://{name}/{joined}").trim_end_matches('/').to_owned();
        let key = Key::parse(&joined).map_err(|error| Fault::Refused(format!("{shown} cannot be a key: {error}")))?;
        let retry = RetryConfig { retry_timeout: RETRY, ..RetryConfig::default() };
        let mut builder = AmazonS3Builder::from_env().with_bucket_name(name).with_retry(retry);
        if let Some(endpoint) = &keys.endpoint {
            builder = builder.with_endpoint(endpoint).with_allow_http(endpoint.starts_with("http://"));
        }
        if let Some(region) = &keys.region {
            builder = builder.with_region(region);
        }
        if let (Some(id), Some(secret)) = (&keys.access_key_id, &keys.secret_access_key) {
            builder = builder.with_access_key_id(id).with_secret_access_key(secret);
        }
        if let Some(token) = &keys.session_token {
            builder = builder.with_token(token);
        }
        let store = builder.build().map_err(|error| Fault::Refused(format!("{shown} cannot be opened: {error}")))?;
        Ok(Self { store: Arc::new(store), key, shown })
    }

    /// For sentences.
    pub(super) fn shown(&self) -> &str {
        &self.shown
    }

    /// What there is. Nothing at all is a refusal.
    pub(super) async fn list(&self) -> Result<Listing, Fault> {
        if !self.key.as_ref().is_empty() {
            match self.store.head(&self.key).await {
                Ok(object) if object.size != FOLDER_MARK => return Ok(Listing::Object(object)),
                Ok(_) | Err(StoreError::NotFound { .. }) => {}
                Err(error) => return Err(self.fault(error)),
            }
        }
        let found: Vec<ObjectMeta> = self.store.list(Some(&self.key)).try_collect().await.map_err(|error| self.fault(error))?;
        let below =
            |object: &ObjectMeta| object.location.as_ref().strip_prefix(self.key.as_ref()).map(|path| path.trim_matches('/').to_owned());
        let named: Vec<(String, ObjectMeta)> = found.into_iter().filter_map(|object| Some((below(&object)?, object))).collect();
        if named.is_empty() {
            return match self.store.head(&self.key).await {
                // An empty file after all.
                Ok(object) if !self.key.as_ref().is_empty() => Ok(Listing::Object(object)),
                _ => Err(Fault::Refused(format!("{} is not there: neither an object nor anything below it", self.shown))),
            };
        }
        Ok(as_files(named))
    }

    /// Fetches an object, from where `partial` is. One try.
    pub(super) async fn fetch(
        &self,
        object: &ObjectMeta,
        partial: &Partial,
        (meter, reached): (&Meter<'_>, &Reached),
    ) -> Result<(), Fault> {
        let kept = |error: &io::Error| Fault::disk(format_args!("what comes from {} cannot be kept", self.shown), error);
        let begun = partial.begun().filter(|(tag, length)| Some(tag) == object.e_tag.as_ref() && *length <= object.size);
        let (mut file, start) = match &begun {
            Some((_, length)) => (partial.go_on().map_err(|error| kept(&error))?, *length),
            None => (partial.begin(object.e_tag.as_deref()).map_err(|error| kept(&error))?, 0),
        };
        if start == object.size {
            return Ok(());
        }
        let range = (start > 0).then_some(GetRange::Offset(start));
        let options = GetOptions { range, if_match: object.e_tag.clone(), ..GetOptions::default() };
        let got = match self.store.get_opts(&object.location, options).await {
            Ok(got) => got,
            Err(StoreError::Precondition { .. }) => {
                return Err(Fault::Refused(format!("`{}` in {} changed while it was fetched", object.location, self.shown)));
            }
            Err(error) => return Err(self.fault(error)),
        };
        let (mut length, mut body) = (start, got.into_stream());
        while let Some(bytes) = body.next().await {
            let bytes = bytes.map_err(|error| {
                Fault::Passing(format!("`{}` in {} broke off after {length} bytes: {error}", object.location, self.shown))
            })?;
            file.write_all(&bytes).map_err(|error| kept(&error))?;
            length += bytes.len() as u64;
            meter.add(bytes.len() as u64);
            reached.at(length);
        }
        if length == object.size {
            return Ok(());
        }
        Err(Fault::Passing(format!("`{}` in {} broke off: {length} bytes of {} came", object.location, self.shown, object.size)))
    }

    /// Stores a file below the key.
    pub(super) async fn store(&self, file: &Path, path: &str, replaces: Replaces) -> Result<Stored, Fault> {
        let key = Key::parse(format!("{}/{path}", self.key).trim_start_matches('/'))
            .map_err(|error| Fault::Refused(format!("`{path}` cannot be a key: {error}")))?;
        match self.store.head(&key).await {
            Ok(there) => match (self.is_same(&there, file).await?, replaces) {
                (true, _) => return Ok(Stored::WasThere),
                (false, Replaces::Nothing) => return Ok(Stored::OtherIsThere),
                (false, Replaces::Others) => {}
            },
            Err(StoreError::NotFound { .. }) => {}
            Err(error) => return Err(self.fault(error)),
        }
        let failed = |error: io::Error| match error.downcast::<StoreError>() {
            Ok(error) => self.fault(error),
            Err(error) => Fault::Passing(format!("`{path}` cannot be stored in {}: {error}", self.shown)),
        };
        let mut source = tokio::fs::File::open(file).await.map_err(|error| Fault::disk(format_args!("`{path}` cannot be read"), &error))?;
        let mut target = BufWriter::new(Arc::clone(&self.store) as Arc<dyn ObjectStore>, key);
        if let Err(error) = tokio::io::copy(&mut source, &mut target).await {
            // What was uploaded of it is thrown away, as far as the bucket can be reached.
            let _ = target.abort().await;
            return Err(failed(error));
        }
        target.shutdown().await.map_err(failed)?;
        Ok(Stored::Now)
    }

    /// Whether an object has the bytes of a file. It is read for that: not every service says what it holds.
    async fn is_same(&self, object: &ObjectMeta, file: &Path) -> Result<bool, Fault> {
        let unread = |error: &io::Error| Fault::disk(format_args!("`{}` cannot be read", file.display()), error);
        if std::fs::metadata(file).map_err(|error| unread(&error))?.len() != object.size {
            return Ok(false);
        }
        let mut theirs = Sha256::new();
        let mut body = self.store.get(&object.location).await.map_err(|error| self.fault(error))?.into_stream();
        while let Some(bytes) = body.next().await {
            theirs.update(bytes.map_err(|error| self.fault(error))?);
        }
        let ours = digest(file).await.map_err(|error| unread(&error))?;
        Ok(ours.sha256 == hex::encode(theirs.finalize()))
    }

    fn fault(&self, error: StoreError) -> Fault {
        let shown = &self.shown;
        match error {
            StoreError::NotFound { .. } => Fault::Refused(format!("{shown} is not there, or its bucket is not")),
            StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. } => {
                Fault::Refused(format!("{shown} may not be used: the service refuses the key of the datastore"))
            }
            error @ (StoreError::InvalidPath { .. } | StoreError::NotSupported { .. }) => Fault::Refused(format!("{shown}: {error}")),
            error => Fault::Passing(format!("{shown} does not answer: {error}")),
        }
    }
}

/// What of some objects can be files beside each other.
fn as_files(named: Vec<(String, ObjectMeta)>) -> Listing {
    let above = |path: &str| path.match_indices('/').map(|(at, _)| path[..at].to_owned()).collect::<Vec<_>>();
    let folders: HashSet<String> = named.iter().flat_map(|(path, _)| above(path)).collect();
    let (mut objects, mut left_out) = (Vec::new(), Vec::new());
    for (path, object) in named {
        let is_mark = object.size == FOLDER_MARK && (path.is_empty() || folders.contains(&path));
        if is_mark {
            continue;
        }
        if path.is_empty() || relative_path(&path).as_deref() != Ok(path.as_str()) {
            left_out.push(format!("`{}` is left out: it cannot be the name of a file", object.location.as_ref().escape_debug()));
        } else if folders.contains(&path) {
            left_out.push(format!("`{path}` is left out: there are objects below it, too, and a file is no folder"));
        } else {
            objects.push((path, object));
        }
    }
    Listing::Below { objects, left_out }
}

/// What storing a file may do to another one of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Replaces {
    /// Nothing: the other one stays.
    Nothing,
    /// It takes its place.
    Others,
}

/// What became of a file that was to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    /// It was.
    Now,
    /// The same bytes were there already.
    WasThere,
    /// Other bytes are there, and stay.
    OtherIsThere,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(path: &str, size: u64) -> (String, ObjectMeta) {
        let location = Key::from(path);
        (path.to_owned(), ObjectMeta { location, last_modified: Default::default(), size, e_tag: None, version: None })
    }

    #[test]
    fn objects_that_cannot_be_files_beside_each_other_are_told() {
        let listed = vec![object("a", 0), object("a/b", 3), object("c", 2), object("c/d", 1), object("empty", 0), object("x/../y", 1)];
        let Listing::Below { objects, left_out } = as_files(listed) else { panic!("objects") };
        assert_eq!(objects.iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>(), ["a/b", "c/d", "empty"]);
        assert_eq!(left_out.len(), 2, "{left_out:?}");
    }

    #[test]
    fn the_key_of_a_path_lies_below_the_datastores_prefix() {
        let bucket = |url: &str, path: &str| Bucket::open(url, path, &S3Keys::default()).map(|bucket| bucket.shown().to_owned());
        assert_eq!(bucket("s3://b/p/", "a/c"), Ok("s3://b/p/a/c".into()));
        assert_eq!(bucket("s3://b", ""), Ok("s3://b".into()));
    }
}
