//! How far the preparation of an environment is.

use serde::{Deserialize, Serialize};

/// What happens now, e.g. "downloading 13 of 40".
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// In a few lower-case words: `solving`, `downloading`, `linking`, `building image`, `waiting for another builder`.
    pub what: String,
    /// How much of it is done; means something only if `total` is known.
    #[serde(default)]
    pub done: u64,
    /// How much there is; `None`: nobody knows.
    #[serde(default)]
    pub total: Option<u64>,
    /// What is counted, e.g. `packages`, `bytes`, `steps`; empty where nothing is.
    #[serde(default)]
    pub unit: String,
}

impl Progress {
    /// A step without a count.
    pub fn step(what: impl Into<String>) -> Self {
        Self { what: what.into(), ..Self::default() }
    }

    /// A step of which `done` of `total` `unit` are done.
    pub fn counted(what: impl Into<String>, done: u64, total: u64, unit: impl Into<String>) -> Self {
        Self { what: what.into(), done, total: Some(total), unit: unit.into() }
    }
}

impl std::fmt::Display for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.total {
            Some(total) if self.unit == "bytes" => write!(f, "{} {} of {} MB", self.what, self.done >> 20, total >> 20),
            Some(total) => write!(f, "{} {} of {total} {}", self.what, self.done, self.unit),
            None => f.write_str(&self.what),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_reads_as_a_phrase() {
        assert_eq!(Progress::step("solving").to_string(), "solving");
        assert_eq!(Progress::counted("downloading", 13, 40, "packages").to_string(), "downloading 13 of 40 packages");
        assert_eq!(Progress::counted("downloading", 5 << 20, 10 << 20, "bytes").to_string(), "downloading 5 of 10 MB");
    }
}
