//! One file from a web server: gone on with where the server can, begun again where it cannot, checked where it says what should arrive.

use std::{
    fs::File,
    io::{self, Write as _},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use futures_util::StreamExt as _;
use reqwest::{
    Client, Response, StatusCode,
    header::{CONTENT_RANGE, ETAG, HeaderMap, IF_RANGE, LAST_MODIFIED, RANGE},
};

use super::{
    fault::{Fault, Reached},
    journal::Meter,
    partial::{Partial, make_sure_of_room},
};
use crate::agent::{client::chain, outputs::digest};

/// A download without a byte for this long is gone on with in a new request.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// A client that trusts what this machine trusts, and takes the machine's proxy.
pub(super) fn client() -> Result<Client, Fault> {
    let client = Client::builder().connect_timeout(Duration::from_secs(15)).read_timeout(STALL_TIMEOUT).build();
    client.map_err(|error| Fault::Machine(format!("no client for the web can be made: {}", reason(error))))
}

/// The name of the file behind an address.
pub(super) fn file_name(address: &str) -> String {
    let place = address.split(['?', '#']).next().unwrap_or_default();
    let path = place.split_once("://").map_or(place, |(_, rest)| rest);
    let last = path.split_once('/').map_or("", |(_, path)| path.rsplit('/').next().unwrap_or_default());
    let name = percent_encoding::percent_decode_str(last).decode_utf8_lossy().replace(['/', '\0'], "_");
    if name.is_empty() || name == "." || name == ".." { "download".into() } else { name }
}

/// Fetches what `address` leads to, from where `partial` is; `shown` is the address for sentences. One try.
pub(super) async fn fetch(
    (client, address, shown): (&Client, &str, &str),
    partial: &Partial,
    (meter, reached): (&Meter<'_>, &Reached),
) -> Result<(), Fault> {
    let begun = partial.begun();
    let mut request = client.get(address);
    if let Some((tag, length)) = &begun {
        request = request.header(RANGE, format!("bytes={length}-")).header(IF_RANGE, tag);
    }
    let response = request.send().await.map_err(|error| Fault::Passing(format!("{shown} cannot be reached: {}", reason(error))))?;
    let begun = begun.map_or(0, |(_, length)| length);
    let disk = |error: &io::Error| Fault::disk(format_args!("what comes from {shown} cannot be kept"), error);
    let (file, start) = match response.status() {
        StatusCode::PARTIAL_CONTENT if begun > 0 && continues_at(response.headers(), begun) => {
            (partial.go_on().map_err(|error| disk(&error))?, begun)
        }
        StatusCode::OK => (partial.begin(tag(response.headers()).as_deref()).map_err(|error| disk(&error))?, 0),
        StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE if begun > 0 => {
            partial.forget().map_err(|error| disk(&error))?;
            return Err(Fault::Passing(format!("{shown} has changed")));
        }
        status => return Err(refusal(status, shown)),
    };
    let expected = response.content_length().map(|length| start + length);
    if let Some(expected) = expected {
        meter.expect(expected);
        make_sure_of_room(partial.path(), expected - start)?;
    }
    let digest = sha256(response.headers());
    let length = receive(response, (file, start), shown, (meter, reached)).await?;
    if expected.is_some_and(|expected| expected != length) {
        return Err(Fault::Passing(format!("{shown} broke off after {length} bytes")));
    }
    match digest {
        Some(digest) => check(partial, &digest, shown).await,
        None => Ok(()),
    }
}

/// Writes a body to its end; gives how long the file is then.
async fn receive(
    response: Response,
    (mut file, start): (File, u64),
    shown: &str,
    (meter, reached): (&Meter<'_>, &Reached),
) -> Result<u64, Fault> {
    let mut length = start;
    meter.take_back(meter.bytes());
    meter.add(start);
    let mut body = response.bytes_stream();
    while let Some(bytes) = body.next().await {
        let bytes = bytes.map_err(|error| Fault::Passing(format!("{shown} broke off after {length} bytes: {}", reason(error))))?;
        file.write_all(&bytes).map_err(|error| Fault::disk(format_args!("what comes from {shown} cannot be kept"), &error))?;
        length += bytes.len() as u64;
        meter.add(bytes.len() as u64);
        reached.at(length);
    }
    Ok(length)
}

async fn check(partial: &Partial, expected: &[u8], shown: &str) -> Result<(), Fault> {
    let found = digest(partial.path()).await;
    let found = found.map_err(|error| Fault::disk(format_args!("what came from {shown} cannot be read"), &error))?;
    if found.sha256 == hex::encode(expected) {
        return Ok(());
    }
    partial.forget().map_err(|error| Fault::disk(format_args!("what came from {shown} cannot be removed"), &error))?;
    Err(Fault::Passing(format!("what came from {shown} does not have the SHA-256 that its server tells")))
}

/// The version of what is sent, as far as it can be named in `If-Range`: weak names do not tell bytes apart.
fn tag(headers: &HeaderMap) -> Option<String> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    text(ETAG).filter(|tag| !tag.starts_with("W/")).or_else(|| text(LAST_MODIFIED))
}

fn continues_at(headers: &HeaderMap, start: u64) -> bool {
    let range = headers.get(CONTENT_RANGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    range.strip_prefix("bytes ").is_some_and(|range| range.starts_with(&format!("{start}-")))
}

/// The SHA-256 of the whole file, where the server tells (RFC 9530, RFC 3230).
fn sha256(headers: &HeaderMap) -> Option<Vec<u8>> {
    let of = |value: &str| {
        value.split(',').find_map(|entry| {
            let (name, digest) = entry.trim().split_once('=')?;
            let digest = digest.trim_matches(':');
            BASE64_STANDARD.decode(digest).ok().filter(|digest| name.eq_ignore_ascii_case("sha-256") && digest.len() == 32)
        })
    };
    ["repr-digest", "digest"].iter().find_map(|name| of(headers.get(*name)?.to_str().ok()?))
}

fn refusal(status: StatusCode, shown: &str) -> Fault {
    match status {
        StatusCode::NOT_FOUND | StatusCode::GONE => Fault::Refused(format!("{shown} is not there (status {})", status.as_u16())),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            Fault::Refused(format!("{shown} may not be read (status {}): are its credentials missing or too old?", status.as_u16()))
        }
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => {
            Fault::Passing(format!("{shown} answers with status {}", status.as_u16()))
        }
        status if status.is_server_error() => Fault::Passing(format!("{shown} answers with status {}", status.as_u16())),
        status => Fault::Refused(format!("{shown} answers with status {}", status.as_u16())),
    }
}

/// What reqwest says, without the address, which may hold a secret.
fn reason(error: reqwest::Error) -> String {
    let text = chain(&error.without_url());
    text.strip_prefix("the server cannot be reached: ").unwrap_or(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_called_as_its_address_ends() {
        let table = [
            ("https://h/a/b%20c.csv?sig=x", "b c.csv"),
            ("https://h/a/", "download"),
            ("https://h", "download"),
            ("http://h/..", "download"),
            ("http://h/a%2Fb", "a_b"),
            ("http://h/x#y/z", "x"),
        ];
        for (address, name) in table {
            assert_eq!(file_name(address), name, "{address}");
        }
    }

    #[test]
    fn a_digest_is_read_in_both_of_its_spellings() {
        let digest = BASE64_STANDARD.encode([7; 32]);
        for (name, value) in [("repr-digest", format!("md5=:AA==:, sha-256=:{digest}:")), ("digest", format!("SHA-256={digest}"))] {
            let headers = HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())]);
            assert_eq!(sha256(&headers), Some(vec![7; 32]), "{name}");
        }
        assert_eq!(sha256(&HeaderMap::new()), None);
    }

    #[test]
    fn a_weak_name_of_a_version_is_not_relied_on() {
        let headers = |tag: &str| HeaderMap::from_iter([(ETAG, tag.parse().unwrap())]);
        assert_eq!(tag(&headers("\"v1\"")), Some("\"v1\"".into()));
        assert_eq!(tag(&headers("W/\"v1\"")), None);
    }

    #[test]
    fn a_refusal_is_told_from_a_server_that_is_tired() {
        for (status, passes) in [(404, false), (403, false), (400, false), (500, true), (503, true), (429, true)] {
            let fault = refusal(StatusCode::from_u16(status).unwrap(), "https://h/x");
            assert_eq!(matches!(fault, Fault::Passing(_)), passes, "{status}");
        }
    }
}
