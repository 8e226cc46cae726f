//! How a long operation tells how far it is. What is drawn is the caller's business.

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Things.
    Count,
}

/// Hears how far a long operation is.
pub trait Progress: Send + Sync {
    /// The next stretch begins: `what` (a gerund and its object, e.g. `copying blobs`), `total` of `unit` long.
    fn begin(&self, what: &'static str, total: u64, unit: Unit);

    /// That much more of the present stretch is done.
    fn advance(&self, by: u64);
}

/// Tells nobody.
#[derive(Clone, Copy, Debug)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _what: &'static str, _total: u64, _unit: Unit) {}

    fn advance(&self, _by: u64) {}
}
