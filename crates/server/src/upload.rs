//! Reads the two parts of a submission: the definition into memory, the archive into a staged blob that is hashed and counted while
//! it arrives.
//!
//! Nothing is committed here. Whatever goes wrong, dropping the [`Submission`] (or the future that reads it) leaves no staging file.

use axum::{
    body::{Body, Bytes},
    extract::{FromRequest, Multipart, Request, multipart::Field},
    http::{HeaderMap, header},
};
use futures_util::StreamExt as _;
use sha2::{Digest as _, Sha256};
use trainyard_core::{Error, ErrorKind, Result, archive::ArchivePlan, ids::Digest};
use trainyard_store::{archive, blobs::StagedBlob};

use crate::state::AppState;

/// The part that holds the run definition (azureml-wire D.1).
const DEFINITION_PART: &str = "runDefinitionFile";
/// The part that holds the zipped project (azureml-wire D.1).
const ARCHIVE_PART: &str = "projectZipFile";

/// The content of a multipart submission, checked but not yet stored.
pub(crate) struct Submission {
    /// The definition as sent.
    pub(crate) definition: Bytes,
    /// The archive, staged.
    pub(crate) archive: StagedBlob,
    /// What the archive contains.
    pub(crate) plan: ArchivePlan,
    /// Identifies the submission: SHA-256 over both digests. Two requests with the same run id are the same request if this is equal.
    pub(crate) digest: Digest,
}

/// Reads the body of `startrun`. Parts need no Content-Type; names match in any case.
pub(crate) async fn read_submission(state: &AppState, request: Request<Body>) -> Result<Submission> {
    let limits = &state.settings.limits;
    refuse_declared_length(request.headers(), limits.max_upload_bytes + limits.max_definition_bytes)?;
    let request = with_first_delimiter(request).await?;
    let mut form = Multipart::from_request(request, &()).await.map_err(|rejection| {
        Error::invalid("the body is not multipart/form-data with a boundary").with_target("Content-Type").with_source(rejection)
    })?;
    let mut definition = None;
    let mut staged = None;
    while let Some(field) = form.next_field().await.map_err(|error| broken_body(&error))? {
        let name = field.name().unwrap_or_default().to_owned();
        if name.eq_ignore_ascii_case(DEFINITION_PART) {
            refuse_second(definition.is_some(), DEFINITION_PART)?;
            definition = Some(read_definition(field, limits.max_definition_bytes).await?);
        } else if name.eq_ignore_ascii_case(ARCHIVE_PART) {
            refuse_second(staged.is_some(), ARCHIVE_PART)?;
            staged = Some(stage_archive(state, field).await?);
        } else {
            let message = format!("the body has a part named `{}`: expected `{DEFINITION_PART}` and `{ARCHIVE_PART}`", shown(&name));
            return Err(Error::invalid(message).with_target("body"));
        }
    }
    let definition = definition.ok_or_else(|| missing(DEFINITION_PART, "definition.json"))?;
    let archive = staged.ok_or_else(|| missing(ARCHIVE_PART, "project.zip"))?;
    let plan = archive::inspect_staged(&archive, limits.archive).await.map_err(|error| error.with_target(ARCHIVE_PART))?;
    let digest = submission_digest(&definition, &archive)?;
    trainyard_store::fail_point!("upload.staged");
    Ok(Submission { definition, archive, plan, digest })
}

/// The longest first delimiter: two dashes, a boundary of 70 characters (RFC 2046), the end of the line.
const FIRST_DELIMITER: usize = 74;

/// The request with as much of its body at hand as the parser needs to find the first delimiter.
///
/// multer 3.1.0 asks the stream twice while it looks for that one, and takes the end of the stream, found at the second time, for a body
/// without it: a small body that arrives whole between the two questions was refused. With the delimiter there at the first
/// question there is no second one.
async fn with_first_delimiter(request: Request<Body>) -> Result<Request<Body>> {
    let (parts, body) = request.into_parts();
    let mut rest = body.into_data_stream();
    let mut begin: Vec<Bytes> = Vec::new();
    while begin.iter().map(Bytes::len).sum::<usize>() < FIRST_DELIMITER
        && let Some(chunk) = rest.next().await
    {
        begin.push(chunk.map_err(|error| broken_body(&error))?);
    }
    let begin = futures_util::stream::iter(begin.into_iter().map(Ok));
    Ok(Request::from_parts(parts, Body::from_stream(begin.chain(rest))))
}

/// Answers before the body is read when its declared length can not fit.
fn refuse_declared_length(headers: &HeaderMap, limit: u64) -> Result<()> {
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()).and_then(|text| text.parse::<u64>().ok());
    match declared {
        Some(length) if length > limit => {
            let message = format!("the body is {length} bytes, the limit is {limit} bytes ([server] max_upload_bytes)");
            Err(Error::new(ErrorKind::TooLarge, message).with_target("Content-Length"))
        }
        _ => Ok(()),
    }
}

fn refuse_second(present: bool, part: &str) -> Result<()> {
    if present { Err(Error::invalid(format!("the body has two parts named `{part}`")).with_target(part)) } else { Ok(()) }
}

fn missing(part: &str, file: &str) -> Error {
    Error::invalid(format!("the body has no part named `{part}` (the file `{file}`)")).with_target(part)
}

fn shown(name: &str) -> String {
    name.chars().take(60).collect()
}

/// The reason belongs into the sentence: a connection that broke, a client that sent too little and a missing boundary are mended differently.
fn broken_body(error: &(impl std::error::Error + 'static)) -> Error {
    let reasons: Vec<String> = std::iter::successors(error.source(), |&reason| reason.source()).map(ToString::to_string).collect();
    let reasons = if reasons.is_empty() { error.to_string() } else { reasons.join(": ") };
    Error::invalid(format!("the multipart body ends early or is malformed ({reasons}); send it again")).with_target("body")
}

async fn read_definition(mut field: Field<'_>, limit: u64) -> Result<Bytes> {
    let mut bytes = Vec::new();
    while let Some(chunk) = field.chunk().await.map_err(|error| broken_body(&error))? {
        if bytes.len() as u64 + chunk.len() as u64 > limit {
            let message = format!("the definition is over the limit of {limit} bytes ([server] max_definition_bytes)");
            return Err(Error::new(ErrorKind::TooLarge, message).with_target(DEFINITION_PART));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.into())
}

async fn stage_archive(state: &AppState, mut field: Field<'_>) -> Result<StagedBlob> {
    let about = |error: Error| error.with_target(ARCHIVE_PART);
    let mut staged = state.store.blobs().stage(state.settings.limits.max_upload_bytes).await.map_err(about)?;
    while let Some(chunk) = field.chunk().await.map_err(|error| broken_body(&error))? {
        staged.write(chunk).await.map_err(about)?;
    }
    staged.finish().await.map_err(about)
}

fn submission_digest(definition: &[u8], archive: &StagedBlob) -> Result<Digest> {
    let mut hasher = Sha256::new();
    hasher.update(Sha256::digest(definition));
    hasher.update(archive.digest().as_str());
    Digest::new(hex::encode(hasher.finalize()))
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use super::*;

    /// Nothing at the first question, and everything at the second one: as when a body arrives between the two.
    fn late(text: &'static str) -> Body {
        let mut asked = 0;
        let stream = futures_util::stream::poll_fn(move |context| {
            asked += 1;
            match asked {
                1 => {
                    context.waker().wake_by_ref();
                    Poll::Pending
                }
                2 => Poll::Ready(Some(Ok::<_, std::io::Error>(Bytes::from_static(text.as_bytes())))),
                _ => Poll::Ready(None),
            }
        });
        Body::from_stream(stream)
    }

    fn request(body: Body) -> Request<Body> {
        Request::builder().header(header::CONTENT_TYPE, "multipart/form-data; boundary=b").body(body).unwrap()
    }

    #[tokio::test]
    async fn a_body_that_arrives_at_one_stroke_is_read() {
        let request =
            with_first_delimiter(request(late("--b\r\ncontent-disposition: form-data; name=\"x\"\r\n\r\n1\r\n--b--\r\n"))).await.unwrap();
        let mut form = Multipart::from_request(request, &()).await.unwrap();
        let field = form.next_field().await.unwrap().unwrap();
        assert_eq!(field.name(), Some("x"));
        assert_eq!(field.text().await.unwrap(), "1");
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_refused_with_the_reason() {
        let request = with_first_delimiter(request(late("--b\r\ncontent-disposition: form-data; name=\"x\"\r\n\r\n1"))).await.unwrap();
        let mut form = Multipart::from_request(request, &()).await.unwrap();
        let mut field = form.next_field().await.unwrap().unwrap();
        let error = loop {
            match field.chunk().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("a body without an end was read"),
                Err(error) => break broken_body(&error),
            }
        };
        assert_eq!((error.kind(), error.target()), (ErrorKind::Invalid, Some("body")));
        assert!(error.message().contains("incomplete"), "{error}");
    }
}
