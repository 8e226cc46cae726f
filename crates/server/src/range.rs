//! Which bytes of a file a request asks for: one range of RFC 9110, from `Range` or from `x-ms-range` (azureml-wire C.9).
//!
//! Several ranges in one request, units other than bytes and headers that make no sense are answered with the whole file,
//! as the RFC allows.

use http::{HeaderMap, header::RANGE};

/// What to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// 200 with everything.
    Whole,
    /// 206 with the bytes `start..end`, never empty.
    Part {
        /// First byte.
        start: u64,
        /// One after the last byte.
        end: u64,
    },
    /// 416: the range starts after the end of the file.
    OutOfRange,
}

/// What `headers` ask for of a file of `size` bytes; `x-ms-range` goes before `Range`, as it does in the blob service.
pub(crate) fn wanted(headers: &HeaderMap, size: u64) -> Wanted {
    let text = headers.get("x-ms-range").or_else(|| headers.get(RANGE)).and_then(|value| value.to_str().ok());
    text.and_then(|text| parse(text, size)).unwrap_or(Wanted::Whole)
}

/// `bytes=a-b`, `bytes=a-` or `bytes=-n`; `None` when it is none of them.
fn parse(text: &str, size: u64) -> Option<Wanted> {
    let (unit, range) = text.trim().split_once('=')?;
    let (first, last) = range.trim().split_once('-')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (start, end) = match (first.trim(), last.trim()) {
        ("", suffix) => (size.saturating_sub(suffix.parse().ok()?), size),
        (first, "") => (first.parse().ok()?, size),
        (first, last) => {
            let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
            if last < first {
                return None;
            }
            (first, last.saturating_add(1).min(size))
        }
    };
    Some(if start < end { Wanted::Part { start, end } } else { Wanted::OutOfRange })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn range(name: &'static str, text: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(http::HeaderName::from_static(name), HeaderValue::from_static(text))])
    }

    #[test]
    fn one_range_of_bytes_is_a_part() {
        let table = [
            ("bytes=0-3", Wanted::Part { start: 0, end: 4 }),
            ("bytes=4-", Wanted::Part { start: 4, end: 10 }),
            ("bytes=4-100", Wanted::Part { start: 4, end: 10 }),
            ("bytes=-3", Wanted::Part { start: 7, end: 10 }),
            ("bytes=-30", Wanted::Part { start: 0, end: 10 }),
            ("bytes=10-", Wanted::OutOfRange),
            ("bytes=-0", Wanted::OutOfRange),
            ("bytes=0-18446744073709551615", Wanted::Part { start: 0, end: 10 }),
            ("bytes=0-1,4-5", Wanted::Whole),
            ("bytes=5-2", Wanted::Whole),
            ("lines=0-3", Wanted::Whole),
            ("bytes=", Wanted::Whole),
            ("bytes=a-b", Wanted::Whole),
        ];
        for (text, expected) in table {
            assert_eq!(wanted(&range("range", text), 10), expected, "{text}");
            assert_eq!(wanted(&range("x-ms-range", text), 10), expected, "{text}");
        }
    }

    #[test]
    fn the_blob_services_own_header_goes_first() {
        let mut headers = range("range", "bytes=0-0");
        headers.insert("x-ms-range", HeaderValue::from_static("bytes=2-3"));
        assert_eq!(wanted(&headers, 10), Wanted::Part { start: 2, end: 4 });
        assert_eq!(wanted(&HeaderMap::new(), 10), Wanted::Whole);
    }

    #[test]
    fn an_empty_file_has_no_parts() {
        assert_eq!(wanted(&range("range", "bytes=0-"), 0), Wanted::OutOfRange);
        assert_eq!(wanted(&HeaderMap::new(), 0), Wanted::Whole);
    }
}
