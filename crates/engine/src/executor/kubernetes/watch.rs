//! Watches: a line for each thing that is new, for as long as Kubernetes and the network keep them open. What a line says is not looked at: a
//! list says it, and a watch that begins where the last list was misses nothing that the list had not.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use http_body_util::BodyExt as _;
use serde::Deserialize;

use super::{Inner, client::Failure, view::Kind};

/// How long Kubernetes is to keep a watch open.
const OPEN: Duration = Duration::from_secs(290);

/// A watch that says nothing for this long after it should have ended is given up: nobody is at the other end.
const MARGIN: Duration = Duration::from_secs(30);

/// The pauses before a watch that broke is opened again.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// The longest line; an object in it is at most some megabytes.
const MAX_LINE_BYTES: usize = 16 << 20;

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "type")]
    kind: String,
}

/// How a watch ended.
enum End {
    /// As agreed, or somewhere on the way: another one begins where the last list was.
    Closed,
    /// Kubernetes does not remember that far back.
    Gone,
}

/// Watches for ever.
pub(super) async fn follow(inner: Arc<Inner>, kind: Kind) {
    let mut pause = PAUSES.0;
    loop {
        let version = inner.view.version(kind).await;
        let end = watch(&inner, kind, &version).await;
        inner.view.set_watching(kind, false);
        inner.view.mark();
        match end {
            Ok(End::Closed) => pause = PAUSES.0,
            Ok(End::Gone) => {
                tracing::debug!(?kind, "a watch begins anew");
                inner.view.forget_version(kind);
            }
            Err(failure) => {
                tracing::debug!(?kind, error = failure.words(), "a watch could not be opened");
                if failure.code() == Some(410) {
                    inner.view.forget_version(kind);
                }
                pause = (2 * pause).min(PAUSES.1);
                if let Failure::Busy { after, .. } = failure {
                    pause = pause.max(after);
                }
            }
        }
        // Also after a good end: a proxy that ends every watch at once must not be a storm. Lists go on meanwhile.
        tokio::time::sleep(pause).await;
    }
}

async fn watch(inner: &Inner, kind: Kind, version: &str) -> Result<End, Failure> {
    let body = inner.api.stream(&inner.view.watch_path(kind, version, OPEN)).await?;
    inner.view.set_watching(kind, true);
    let mut stream = body.into_data_stream();
    let mut buffer: Vec<u8> = Vec::new();
    loop {
        let Ok(Some(Ok(chunk))) = tokio::time::timeout(OPEN + MARGIN, stream.next()).await else { return Ok(End::Closed) };
        buffer.extend_from_slice(&chunk);
        while let Some(at) = buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = buffer.drain(..=at).collect();
            let Ok(line) = serde_json::from_slice::<Line>(&line) else { return Ok(End::Closed) };
            // An error in the middle of a good answer; 410 is the usual one.
            if line.kind == "ERROR" {
                return Ok(End::Gone);
            }
            inner.view.mark();
        }
        if buffer.len() > MAX_LINE_BYTES {
            return Ok(End::Closed);
        }
    }
}
