//! URLs that carry their own right to be read (azureml-wire C.9): no token, a signature and an expiry.
//!
//! A URL names one artifact of one workspace and is good for reading it between two instants. The signature covers all
//! of that, so that nothing in the URL can be exchanged. The key is 32 random bytes in a file that only the server's
//! user can read; losing it ends every URL that is out, nothing else. Serving the bytes is left to `azureml::content`.

use std::path::Path;

use aws_lc_rs::hmac;
use base64::{Engine, prelude::BASE64_STANDARD};
use jiff::{Timestamp, fmt::strtime};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use trainyard_core::{Error, ErrorKind, Result, ids::WorkspaceId};

use crate::key_file;

/// A URL may be used this long before it was made, for clients whose clock is behind.
pub(crate) const CLOCK_SKEW_US: i64 = 10 * 60 * 1_000_000;
/// The version that the URLs name; part of what clients expect to see.
const SERVICE_VERSION: &str = "2019-02-02";
/// What a path segment keeps as it is: RFC 3986 unreserved, and the slash between segments.
const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');
/// What a query value keeps as it is: RFC 3986 unreserved.
const VALUE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// What a URL lets its holder read: one artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SignedName {
    /// The workspace; run ids are unique only within one.
    pub(crate) workspace: WorkspaceId,
    /// `{origin}/{container}/{path}`, not escaped.
    pub(crate) artifact_id: String,
}

/// When a URL may be used, microseconds since the epoch; cut to whole seconds in the URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Validity {
    /// Not before.
    pub(crate) from_us: i64,
    /// Not after.
    pub(crate) until_us: i64,
}

impl Validity {
    /// From [`CLOCK_SKEW_US`] before `now_us` until `ttl` after it.
    pub(crate) fn starting(now_us: i64, ttl: std::time::Duration) -> Self {
        let ttl_us = i64::try_from(ttl.as_micros()).unwrap_or(i64::MAX);
        Self { from_us: now_us.saturating_sub(CLOCK_SKEW_US), until_us: now_us.saturating_add(ttl_us) }
    }
}

/// The query of a signed URL, as received.
#[derive(Clone, Debug, Default)]
pub(crate) struct SignedQuery {
    /// `ws`: the workspace.
    pub(crate) workspace: String,
    /// `st`: not before.
    pub(crate) from: String,
    /// `se`: not after.
    pub(crate) until: String,
    /// `sp`: what may be done.
    pub(crate) permissions: String,
    /// `sig`: base64 of the signature.
    pub(crate) signature: String,
}

/// Makes and checks signed URLs. `Debug` shows nothing of the key.
pub struct UrlSigner {
    key: hmac::Key,
}

impl std::fmt::Debug for UrlSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UrlSigner(..)")
    }
}

impl UrlSigner {
    /// Reads the key from `path`, or makes one there (mode 0600) when there is none.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when the file can neither be read nor made, or does not hold a key.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self::from_key(&key_file::open(path, "the key of signed URLs")?))
    }

    /// A signer with this key.
    pub(crate) fn from_key(key: &[u8]) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, key) }
    }

    /// The URL under `base_url` that lets its holder read `name` during `validity`.
    pub(crate) fn sign(&self, base_url: &str, name: &SignedName, validity: Validity) -> String {
        let (from, until) = (instant(validity.from_us), instant(validity.until_us));
        let tag = hmac::sign(&self.key, signed_text(name, &from, &until).as_bytes());
        format!(
            "{base_url}/azureml/{path}?sv={SERVICE_VERSION}&sr=b&sig={signature}&ws={workspace}&st={from}&se={until}&sp=r",
            path = utf8_percent_encode(&name.artifact_id, PATH),
            signature = utf8_percent_encode(&BASE64_STANDARD.encode(tag.as_ref()), VALUE),
            workspace = name.workspace,
            from = utf8_percent_encode(&from, VALUE),
            until = utf8_percent_encode(&until, VALUE),
        )
    }

    /// What `query` lets its holder read, if it was made for `artifact_id` by this server and `now_us` is within its time.
    ///
    /// # Errors
    /// [`ErrorKind::Forbidden`] that says which of them does not hold.
    pub(crate) fn verify(&self, artifact_id: &str, query: &SignedQuery, now_us: i64) -> Result<SignedName> {
        let forged = || Error::new(ErrorKind::Forbidden, "the signature of the URL does not hold; ask for a new URL");
        let workspace: WorkspaceId = query.workspace.parse().map_err(|_| forged())?;
        let signature = BASE64_STANDARD.decode(&query.signature).map_err(|_| forged())?;
        let name = SignedName { workspace, artifact_id: artifact_id.to_owned() };
        if query.permissions != "r" {
            return Err(forged());
        }
        hmac::verify(&self.key, signed_text(&name, &query.from, &query.until).as_bytes(), &signature).map_err(|_| forged())?;
        let (from, until) = (parse_instant(&query.from).ok_or_else(forged)?, parse_instant(&query.until).ok_or_else(forged)?);
        if now_us > until {
            return Err(Error::new(ErrorKind::Forbidden, format!("the URL expired at {}; ask for a new URL", query.until)));
        }
        if now_us < from {
            return Err(Error::new(ErrorKind::Forbidden, format!("the URL is not valid before {}", query.from)));
        }
        Ok(name)
    }
}

/// Everything that the URL says, one fact a line. No part can hold a line break that would shift the others: ids and
/// instants have none, and the artifact's id stands last.
fn signed_text(name: &SignedName, from: &str, until: &str) -> String {
    format!("trainyard-url-1\nr\n{}\n{from}\n{until}\n{}", name.workspace, name.artifact_id)
}

fn instant(us: i64) -> String {
    let stamp = Timestamp::from_microsecond(us).unwrap_or(Timestamp::MAX);
    strtime::format("%Y-%m-%dT%H:%M:%SZ", stamp).unwrap_or_default()
}

fn parse_instant(text: &str) -> Option<i64> {
    text.parse::<Timestamp>().ok().map(Timestamp::as_microsecond)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use uuid::Uuid;

    use super::*;
    use crate::key_file::KEY_BYTES;

    const NOW_US: i64 = 1_733_431_493_500_000;

    fn name(workspace: u128, path: &str) -> SignedName {
        SignedName { workspace: WorkspaceId(Uuid::from_u128(workspace)), artifact_id: format!("ExperimentRun/dcid.r1/{path}") }
    }

    /// The artifact id and the query of a URL, as a server would see them.
    fn received(url: &str) -> (String, SignedQuery) {
        let url = url::Url::parse(url).unwrap();
        let path = percent_encoding::percent_decode_str(url.path()).decode_utf8().unwrap();
        let get = |key: &str| url.query_pairs().find(|(k, _)| k == key).map(|(_, v)| v.into_owned()).unwrap_or_default();
        let query = SignedQuery { workspace: get("ws"), from: get("st"), until: get("se"), permissions: get("sp"), signature: get("sig") };
        (path.strip_prefix("/azureml/").unwrap().to_owned(), query)
    }

    fn signer() -> UrlSigner {
        UrlSigner::from_key(&[7; KEY_BYTES])
    }

    #[test]
    fn a_signed_url_reads_the_artifact_it_was_made_for() {
        let validity = Validity::starting(NOW_US, Duration::from_secs(8 * 3600));
        for path in ["azureml-logs/70_driver_log.txt", "outputs/a b/ü?x=1&y#z%41.txt"] {
            let url = signer().sign("https://host:8443", &name(1, path), validity);
            let (artifact_id, query) = received(&url);
            assert_eq!(signer().verify(&artifact_id, &query, NOW_US).unwrap(), name(1, path), "{url}");
        }
        let url = signer().sign("https://host", &name(1, "a"), validity);
        assert!(url.starts_with("https://host/azureml/ExperimentRun/dcid.r1/a?sv=2019-02-02&sr=b&sig="), "{url}");
        assert!(url.ends_with("&st=2024-12-05T20%3A34%3A53Z&se=2024-12-06T04%3A44%3A53Z&sp=r"), "{url}");
    }

    #[test]
    fn a_url_ends_with_its_time() {
        let validity = Validity::starting(NOW_US, Duration::from_secs(60));
        let (id, query) = received(&signer().sign("https://h", &name(1, "a"), validity));
        assert!(signer().verify(&id, &query, NOW_US - CLOCK_SKEW_US + 1_000_000).is_ok());
        for (now, word) in [(NOW_US + 61_000_000, "expired"), (NOW_US - CLOCK_SKEW_US - 2_000_000, "not valid before")] {
            let error = signer().verify(&id, &query, now).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Forbidden);
            assert!(error.message().contains(word), "{error}");
        }
    }

    #[test]
    fn nothing_in_a_url_can_be_exchanged() {
        let validity = Validity::starting(NOW_US, Duration::from_secs(60));
        let (id, good) = received(&signer().sign("https://h", &name(1, "a"), validity));
        let other_workspace = SignedQuery { workspace: Uuid::from_u128(2).to_string(), ..good.clone() };
        let longer = SignedQuery { until: "2034-12-06T04:44:53Z".into(), ..good.clone() };
        let earlier = SignedQuery { from: "2004-12-06T04:44:53Z".into(), ..good.clone() };
        let write = SignedQuery { permissions: "rw".into(), ..good.clone() };
        let unsigned = SignedQuery { signature: String::new(), ..good.clone() };
        for query in [other_workspace, longer, earlier, write, unsigned, SignedQuery::default()] {
            assert_eq!(signer().verify(&id, &query, NOW_US).unwrap_err().kind(), ErrorKind::Forbidden, "{query:?}");
        }
        assert!(signer().verify("ExperimentRun/dcid.r1/b", &good, NOW_US).is_err());
        assert!(UrlSigner::from_key(&[8; KEY_BYTES]).verify(&id, &good, NOW_US).is_err());
    }

    #[test]
    fn the_key_outlives_a_restart_and_only_the_owner_reads_it() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys/url.key");
        let url = UrlSigner::open(&path).unwrap().sign("https://h", &name(1, "a"), Validity::starting(NOW_US, Duration::from_secs(60)));
        let (id, query) = received(&url);
        assert!(UrlSigner::open(&path).unwrap().verify(&id, &query, NOW_US).is_ok());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&path, b"short").unwrap();
        assert!(UrlSigner::open(&path).unwrap_err().message().contains("does not hold 32 bytes"));
    }
}
