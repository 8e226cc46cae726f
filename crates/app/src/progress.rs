//! How far a long operation is: a bar on a terminal, a line for each stretch elsewhere. Of operations of this program, and of what a
//! run does before its code starts.

use std::sync::{Mutex, PoisonError};

use indicatif::{HumanBytes, ProgressBar};
use serde_json::Value;
use trainyard_core::environment;
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

/// What a run waits for or prepares: one line that changes on a terminal, a line for each step elsewhere.
pub struct Stage {
    printer: Printer,
    bar: ProgressBar,
    last: String,
}

impl Stage {
    /// With the printer of a command.
    pub fn new(printer: &Printer) -> Self {
        Self { printer: *printer, bar: printer.stage_bar(), last: String::new() }
    }

    /// Shows what a RunDto says.
    pub fn show(&mut self, run: &Value) {
        self.show_bar(run);
        let step = Step::of(run);
        if self.bar.is_hidden() && step.what != self.last {
            if !step.message.is_empty() {
                self.printer.note(&step.message);
            }
            self.last = step.what;
        }
    }

    /// Shows what a RunDto says on a terminal only: elsewhere a log tells the same.
    pub fn show_bar(&mut self, run: &Value) {
        let step = Step::of(run);
        self.printer.set_stage(&self.bar, step.amount, step.message);
    }

    /// Shows a step of this program's own.
    pub fn step(&mut self, progress: &environment::Progress) {
        self.printer.set_stage(&self.bar, progress.total.map(|total| (progress.done, total)), progress.to_string());
        if self.bar.is_hidden() && progress.what != self.last {
            self.printer.note(&progress.what);
            self.last.clone_from(&progress.what);
        }
    }

    /// Writes something above the line.
    pub fn above<T>(&self, write: impl FnOnce() -> T) -> T {
        self.bar.suspend(write)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// One step before the code starts.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    /// A word for the step: it changes with the step and not with its amount.
    what: String,
    /// The sentence.
    message: String,
    /// How much is done, of how much.
    amount: Option<(u64, u64)>,
}

impl Step {
    fn of(run: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let preparation = &run["preparation"];
        if preparation.is_object() {
            let amount = preparation["done"].as_u64().zip(preparation["total"].as_u64());
            return Self { what: text(&preparation["what"]), message: text(&preparation["message"]), amount };
        }
        let message = match text(&run["queueingInfo"]["message"]) {
            waits if waits.is_empty() => String::new(),
            waits => format!("waiting: {waits}"),
        };
        let what = text(&run["queueingInfo"]["code"]);
        Self { what, message: if message.is_empty() { shown_status(run) } else { message }, amount: None }
    }
}

/// The status as a step, where nothing more is known.
fn shown_status(run: &Value) -> String {
    match run["status"].as_str() {
        Some(status @ ("Preparing" | "Starting")) => status.to_lowercase(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_step_is_what_the_run_says_most_precisely() {
        let step = |run: Value| {
            let step = Step::of(&run);
            (step.message, step.amount)
        };
        let preparation =
            json!({ "message": "downloading 13 of 40 packages", "what": "downloading", "done": 13, "total": 40, "unit": "packages" });
        assert_eq!(
            step(json!({ "status": "Preparing", "preparation": preparation })),
            ("downloading 13 of 40 packages".into(), Some((13, 40)))
        );
        let solving = json!({ "message": "solving", "what": "solving", "done": 0, "total": null, "unit": "" });
        assert_eq!(step(json!({ "status": "Preparing", "preparation": solving })), ("solving".into(), None));
        let queued = json!({ "status": "Queued", "queueingInfo": { "code": "WaitingForSlot", "message": "2 runs are ahead" } });
        assert_eq!(step(queued), ("waiting: 2 runs are ahead".into(), None));
        assert_eq!(step(json!({ "status": "Preparing" })), ("preparing".into(), None));
        assert_eq!(step(json!({ "status": "Queued" })), (String::new(), None));
    }
}
