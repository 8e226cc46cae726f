//! How far a long operation is: a bar on a terminal, a line for each stretch elsewhere.

use std::sync::{Mutex, PoisonError};

use indicatif::{HumanBytes, ProgressBar};
use trainyard_store::progress::{Progress, Unit};

use crate::printer::Printer;

/// Draws one stretch after the other.
pub struct Drawn {
    printer: Printer,
    bar: Mutex<Option<ProgressBar>>,
}

impl Drawn {
    /// With the printer of a command.
    pub fn new(printer: &Printer) -> Self {
        Self { printer: *printer, bar: Mutex::new(None) }
    }

    fn replace(&self, bar: Option<ProgressBar>) {
        let before = std::mem::replace(&mut *self.bar.lock().unwrap_or_else(PoisonError::into_inner), bar);
        if let Some(before) = before {
            before.finish_and_clear();
        }
    }
}

impl Progress for Drawn {
    fn begin(&self, what: &'static str, total: u64, unit: Unit) {
        let bar = match unit {
            Unit::Bytes => self.printer.bytes_bar(what, total),
            Unit::Count => self.printer.count_bar(what, total),
        };
        if bar.is_hidden() {
            let amount = match (total, unit) {
                (0, _) => String::new(),
                (_, Unit::Bytes) => format!(": {}", HumanBytes(total)),
                (_, Unit::Count) => format!(": {total}"),
            };
            self.printer.note(&format!("{what}{amount}"));
        }
        self.replace(Some(bar));
    }

    fn advance(&self, by: u64) {
        if let Some(bar) = &*self.bar.lock().unwrap_or_else(PoisonError::into_inner) {
            bar.inc(by);
        }
    }
}

impl Drop for Drawn {
    fn drop(&mut self) {
        self.replace(None);
    }
}
