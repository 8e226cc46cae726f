//! Reading and following a log: `GET {W}/runs/{run}/logs/{path}?offset=&follow=true`.
//!
//! The answer is the raw bytes from `offset` on. With `follow` the response stays open and grows with the log until the log is sealed or the run
//! has ended. A client that is cut off asks again from where it is; a log only grows, so nothing is lost or repeated.
//!
//! A run that is tried again begins its logs anew. The answer names the attempt whose log it is (`x-trainyard-attempt`); a client that goes on
//! says which one it has read (`attempt=`), and gets nothing once another attempt's log stands there.

use std::{collections::BTreeMap, ops::Range, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::{Path, State},
    http::HeaderValue,
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt, TryStreamExt, stream};
use trainyard_core::{
    Error, ErrorKind, Result,
    access::Action,
    ids::{AttemptId, Digest, RunId, WorkspaceId},
};
use trainyard_engine::{RunKey, Subscription};
use trainyard_store::{artifacts::Artifact, live_files::LiveKey};
use trainyard_wire::native::LOG_ATTEMPT_HEADER;

use super::error::NativeError;
use crate::{context::Context, query::Query, state::AppState};

/// How late a lost signal is noticed by a follower.
const RECHECK: Duration = Duration::from_secs(2);

const CHUNK_BYTES: usize = 256 * 1024;

/// The state of one reader.
struct Follower {
    state: AppState,
    place: Place,
    /// The file that was read first. When another attempt has taken its place, the answer ends: the next one begins with that attempt's log.
    reading: Option<LiveKey>,
    offset: u64,
    changes: Subscription,
}

/// Which log.
struct Place {
    workspace: WorkspaceId,
    run: RunId,
    path: String,
}

/// What a reader finds.
enum Found {
    /// These bytes come next.
    Bytes(Bytes),
    /// Nothing more now, but the log may grow.
    Later,
    /// The log is complete and read.
    End,
}

/// Streams a log.
pub(crate) async fn read_log(
    State(state): State<AppState>,
    context: Context,
    Path(path): Path<BTreeMap<String, String>>,
    query: Query,
) -> Result<Response, NativeError> {
    context.allow(Action::Read)?;
    let run = RunId::new(path.get("run").map(String::as_str).unwrap_or_default())?;
    let file = path.get("path").cloned().unwrap_or_default();
    let offset = match query.get("offset") {
        Some(text) => text.parse().map_err(|_| Error::invalid("`offset` must be a number of bytes").with_target("offset"))?,
        None => 0,
    };
    if state.store.run(context.workspace.id, &run).await?.is_none() {
        return Err(Error::not_found(format!("run `{run}` was not found")).into());
    }
    let changes = state.engine.subscribe(&RunKey::new(context.workspace.id, &run));
    let reading = match query.get("attempt") {
        Some(text) => {
            let attempt = Some(text.parse::<AttemptId>().map_err(|error| error.with_target("attempt"))?);
            Some(LiveKey { workspace: context.workspace.id, run: run.clone(), attempt, path: file.clone() })
        }
        None => None,
    };
    let follower = Follower { place: Place { workspace: context.workspace.id, run, path: file }, reading, state, offset, changes };
    let follow = query.get("follow").is_some_and(|text| text == "true");
    let artifact = follower.artifact().await?;
    if !follow && artifact.is_none() {
        return Err(Error::not_found(format!("run `{}` has no log `{}`", follower.place.run, follower.place.path)).into());
    }
    let headers = [("content-type", "application/octet-stream"), ("cache-control", "no-store"), ("x-accel-buffering", "no")];
    let attempt = artifact.and_then(|artifact| artifact.attempt);
    let body = if follow { Body::from_stream(followed(follower)) } else { Body::from_stream(present(follower)) };
    let mut response = (headers, body).into_response();
    if let Some(attempt) = attempt {
        let value = HeaderValue::from_str(&attempt.to_string()).map_err(Error::internal)?;
        response.headers_mut().insert(LOG_ATTEMPT_HEADER, value);
    }
    Ok(response)
}

/// What is there now.
fn present(follower: Follower) -> impl futures_util::Stream<Item = Result<Bytes>> + Send {
    stream::unfold(Some(follower), |follower| async {
        let mut follower = follower?;
        match follower.next().await {
            Ok(Found::Bytes(bytes)) => Some((Ok(bytes), Some(follower))),
            Ok(Found::Later | Found::End) => None,
            Err(error) => Some((Err(error), None)),
        }
    })
    .fuse()
}

/// What is there now and what comes.
fn followed(follower: Follower) -> impl futures_util::Stream<Item = Result<Bytes>> + Send {
    stream::unfold(Some(follower), |follower| async {
        let mut follower = follower?;
        loop {
            match follower.next().await {
                Ok(Found::Bytes(bytes)) => return Some((Ok(bytes), Some(follower))),
                Ok(Found::End) => return None,
                Err(error) => return Some((Err(error), None)),
                Ok(Found::Later) => {
                    let engine = follower.state.engine.clone();
                    tokio::select! {
                        () = follower.changes.changed() => {}
                        () = tokio::time::sleep(RECHECK) => {}
                        () = engine.stopping() => return None,
                    }
                }
            }
        }
    })
    .fuse()
}

/// A piece of a sealed log.
async fn sealed(state: &AppState, digest: &Digest, range: Range<u64>) -> Result<Bytes> {
    let pieces: Vec<Bytes> = state.store.blobs().read(digest, Some(range)).await?.stream.try_collect().await?;
    Ok(pieces.concat().into())
}

impl Follower {
    async fn artifact(&self) -> Result<Option<Artifact>> {
        self.state.store.artifact(self.place.workspace, &format!("dcid.{}", self.place.run), &self.place.path).await
    }

    /// The next bytes of the live file; none when it is gone, because then it was sealed a moment ago and is found there next time.
    async fn live(&self, key: &LiveKey) -> Result<Bytes> {
        match self.state.store.live_files().read(key, self.offset..self.offset + CHUNK_BYTES as u64).await {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Bytes::new()),
            other => other,
        }
    }

    async fn next(&mut self) -> Result<Found> {
        // The run is read before the log: if it has ended by then, what is found after that is all there will be.
        let run = self.state.store.run(self.place.workspace, &self.place.run).await?;
        let ended = run.is_none_or(|run| run.state.is_terminal());
        let artifact = self.artifact().await?;
        let key = artifact.as_ref().and_then(LiveKey::of);
        if self.reading.is_some() && self.reading != key {
            return Ok(Found::End);
        }
        self.reading.clone_from(&key);
        let found = match artifact {
            Some(Artifact { digest: Some(digest), size_bytes, .. }) => {
                let size = u64::try_from(size_bytes).unwrap_or(0);
                if self.offset >= size {
                    return Ok(Found::End);
                }
                let end = size.min(self.offset + CHUNK_BYTES as u64);
                sealed(&self.state, &digest, self.offset..end).await?
            }
            Some(_) => match &key {
                Some(key) => self.live(key).await?,
                None => Bytes::new(),
            },
            None => Bytes::new(),
        };
        self.offset += found.len() as u64;
        Ok(match (found.is_empty(), ended) {
            (false, _) => Found::Bytes(found),
            (true, true) => Found::End,
            (true, false) => Found::Later,
        })
    }
}
