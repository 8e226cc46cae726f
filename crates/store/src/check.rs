//! Checks that the rows keep their invariants and that rows and blobs fit together, and repairs what can be repaired without guessing.
//!
//! What a repair may do is little: put a counter right, close what is over, seal a log that is there, say on a run what is lost, remove what
//! nothing names and is older than an hour. It never makes up content and never changes how a run ended.

mod contents;
mod repair;
mod rows;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::Serialize;
use trainyard_core::{Error, Result};

pub use self::rows::CHEAP;
use crate::{
    progress::{Progress, Unit},
    store::Store,
};

/// What nothing names is left alone until it is older than this: its row may be on the way.
const YOUNG: Duration = Duration::from_secs(3600);

/// How far a check goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Blobs are there and have their size.
    Sizes,
    /// Blobs are read and hashed.
    Contents,
}

/// Whether a check repairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It only looks. A server may be at work meanwhile.
    Look,
    /// It repairs what it can. No server may be at work meanwhile.
    Repair,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which invariant is broken: a word of a closed list.
    pub invariant: &'static str,
    /// What it is about: a run as `workspace/run`, a digest, a path.
    pub object: String,
    /// What is wrong.
    pub sentence: String,
    /// What can be done about it.
    pub repair: Repair,
}

/// What can be done about a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Repair {
    /// A check cannot mend it.
    Impossible,
    /// A check that repairs mends it.
    Possible,
    /// It was mended.
    Done,
}

/// A check.
#[derive(Clone)]
pub struct Check {
    /// How far it goes.
    pub depth: Depth,
    /// Whether it repairs.
    pub mode: Mode,
    /// Now.
    pub now: SystemTime,
    /// Hears how far it is.
    pub progress: Arc<dyn Progress>,
}

impl Store {
    /// Checks everything; what was found, in the order in which it was looked for.
    pub async fn check(&self, check: &Check) -> Result<Vec<Finding>> {
        let mut checking = Checking { store: self, check, findings: Vec::new() };
        checking.rows().await?;
        checking.contents().await?;
        Ok(checking.findings)
    }
}

/// A check at work.
struct Checking<'a> {
    store: &'a Store,
    check: &'a Check,
    findings: Vec<Finding>,
}

impl Checking<'_> {
    fn find(&mut self, invariant: &'static str, object: impl Into<String>, sentence: impl Into<String>, repair: Repair) {
        self.findings.push(Finding { invariant, object: object.into(), sentence: sentence.into(), repair });
    }

    fn begin(&self, what: &'static str, total: u64, unit: Unit) {
        self.check.progress.begin(what, total, unit);
    }

    fn repairs(&self) -> bool {
        self.check.mode == Mode::Repair
    }

    /// [`Repair::Done`] for what was repaired in this mode, else [`Repair::Possible`].
    fn repaired(&self) -> Repair {
        if self.repairs() { Repair::Done } else { Repair::Possible }
    }

    /// What is older than this and not named is nobody's.
    fn old(&self) -> SystemTime {
        self.check.now - YOUNG
    }

    fn now_us(&self) -> Result<i64> {
        let since = self.check.now.duration_since(SystemTime::UNIX_EPOCH).map_err(Error::internal)?;
        i64::try_from(since.as_micros()).map_err(Error::internal)
    }
}
