//! The one place of this crate that reads the time.
//!
//! Handlers take the time from their request's context, so that one request has one time; everything that decides takes it as a
//! parameter.

use jiff::Timestamp;

/// Microseconds since the epoch, now.
pub fn now_us() -> i64 {
    Timestamp::now().as_microsecond()
}

/// RFC 3339 with microseconds and `Z`; trailing zeros of the fraction are cut (azureml-wire H.2).
pub fn rfc3339(at_us: i64) -> String {
    Timestamp::from_microsecond(at_us).unwrap_or(Timestamp::UNIX_EPOCH).to_string()
}
