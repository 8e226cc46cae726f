//! The one place of this crate that reads the wall clock.

/// Microseconds since the epoch.
pub(crate) fn now_us() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}
