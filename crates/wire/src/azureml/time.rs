//! Times and durations as the service writes them (azureml-wire H.2), and as clients do.

use std::time::Duration;

use jiff::{Timestamp, civil, fmt::strtime, tz::TimeZone};
use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::json::{FromJson, WireError};

/// A point in time. Written `2021-06-23T13:08:03.554571Z`, without trailing zeros; read leniently, see [`parse`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UtcTime(pub Timestamp);

/// The time of creation, which the service writes with seven fraction digits and an offset:
/// `2024-12-05T20:44:53.3886899+00:00`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CreatedTime(pub Timestamp);

/// How long something took, as .NET writes it: `[d.]hh:mm:ss[.fffffff]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elapsed(pub Duration);

/// Reads a time as clients write it: `T` or a space in the middle, up to nine fraction digits, `Z`, an offset or nothing
/// (UTC) at the end; a date alone is its midnight.
pub fn parse(text: &str) -> Option<Timestamp> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Some(time);
    }
    let civil: civil::DateTime = text.parse().ok()?;
    civil.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
}

impl UtcTime {
    /// The time that many microseconds after the epoch; a number out of range is the epoch.
    pub fn from_microseconds(microseconds: i64) -> Self {
        Self(Timestamp::from_microsecond(microseconds).unwrap_or(Timestamp::UNIX_EPOCH))
    }
}

impl CreatedTime {
    /// The time that many microseconds after the epoch; a number out of range is the epoch.
    pub fn from_microseconds(microseconds: i64) -> Self {
        Self(UtcTime::from_microseconds(microseconds).0)
    }
}

impl FromJson for UtcTime {
    fn from_json(path: &str, value: Value) -> Result<Self, WireError> {
        let text = String::from_json(path, value)?;
        parse(&text).map(Self).ok_or_else(|| {
            let shown: String = text.chars().take(40).collect();
            WireError::new(path, format!("expected a time such as 2024-12-05T20:44:53.388Z, found the string \"{shown}\""))
        })
    }
}

impl std::fmt::Display for UtcTime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // jiff writes RFC 3339 with `Z` and no more fraction digits than needed.
        self.0.fmt(f)
    }
}

impl std::fmt::Display for CreatedTime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // .NET ticks are 100 ns: the last two digits of ours are cut, not rounded.
        let seconds = strtime::format("%Y-%m-%dT%H:%M:%S", self.0).map_err(|_| std::fmt::Error)?;
        write!(f, "{seconds}.{:07}+00:00", self.0.subsec_nanosecond().unsigned_abs() / 100)
    }
}

impl std::fmt::Display for Elapsed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.0.as_secs();
        let days = seconds / 86_400;
        if days > 0 {
            write!(f, "{days}.")?;
        }
        write!(f, "{:02}:{:02}:{:02}", seconds / 3600 % 24, seconds / 60 % 60, seconds % 60)?;
        match self.0.subsec_nanos() / 100 {
            0 => Ok(()),
            ticks => write!(f, ".{ticks:07}"),
        }
    }
}

impl Serialize for UtcTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for CreatedTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Elapsed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_the_service_writes_them() {
        let table = [
            ("2024-12-05T20:44:53.3886899Z", "2024-12-05T20:44:53.3886899Z", "2024-12-05T20:44:53.3886899+00:00"),
            ("2021-06-23T13:08:03.554571Z", "2021-06-23T13:08:03.554571Z", "2021-06-23T13:08:03.5545710+00:00"),
            ("2021-06-23T13:08:03.500Z", "2021-06-23T13:08:03.5Z", "2021-06-23T13:08:03.5000000+00:00"),
            ("2021-06-23T13:08:03Z", "2021-06-23T13:08:03Z", "2021-06-23T13:08:03.0000000+00:00"),
        ];
        for (input, plain, created) in table {
            let time = parse(input).unwrap();
            assert_eq!(UtcTime(time).to_string(), plain);
            assert_eq!(CreatedTime(time).to_string(), created);
        }
    }

    #[test]
    fn times_are_read_in_every_form_that_clients_write() {
        let expected: Timestamp = "2024-12-05T20:44:53.5Z".parse().unwrap();
        for input in [
            "2024-12-05T20:44:53.5Z",
            "2024-12-05T20:44:53.5000000+00:00",
            "2024-12-05T22:44:53.50+02:00",
            "2024-12-05 20:44:53.5",
            "2024-12-05 20:44:53.500000+00:00",
            "2024-12-05T20:44:53.500000000",
        ] {
            assert_eq!(parse(input), Some(expected), "{input}");
        }
        assert_eq!(parse("2024-12-05").unwrap().to_string(), "2024-12-05T00:00:00Z");
        for input in ["", "now", "1733431493", "2024-13-05T00:00:00Z"] {
            assert_eq!(parse(input), None, "{input}");
        }
    }

    #[test]
    fn durations_are_written_as_dotnet_writes_them() {
        let table = [
            (Duration::ZERO, "00:00:00"),
            (Duration::new(559, 598_375_900), "00:09:19.5983759"),
            (Duration::from_secs(3600), "01:00:00"),
            (Duration::new(90_061, 1_000), "1.01:01:01.0000010"),
        ];
        for (duration, text) in table {
            assert_eq!(Elapsed(duration).to_string(), text);
        }
    }
}
