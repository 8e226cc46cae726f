//! Everything that the command line writes: data to standard output, all else to standard error.
//!
//! Progress is drawn only on a terminal; without one the same facts come as plain lines, or not at all where they are only decoration. Colour is not used.

use std::{
    io::{IsTerminal as _, Write as _},
    time::Duration,
};

use anyhow::{Context as _, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

/// How data is printed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// What a command prints with.
#[derive(Clone, Copy)]
pub struct Printer {
    format: Format,
    progress: bool,
}

impl Printer {
    /// From the flags `--json` and `--no-progress`.
    pub fn new(json: bool, no_progress: bool) -> Self {
        Self { format: if json { Format::Json } else { Format::Text }, progress: !no_progress && std::io::stderr().is_terminal() }
    }

    /// Whether data is for programs.
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Prints `value` as JSON, or what `text` makes of it.
    pub fn data<T: Serialize>(&self, value: &T, text: impl FnOnce(&T) -> String) -> Result<()> {
        match self.format {
            Format::Json => line(&serde_json::to_string_pretty(value)?),
            Format::Text => line(text(value).trim_end()),
        }
    }

    /// Says something on standard error.
    pub fn note(&self, text: &str) {
        let _ = writeln!(std::io::stderr().lock(), "{text}");
    }

    /// A bar over `total` bytes; hidden when standard error is not a terminal.
    pub fn bytes_bar(&self, what: &str, total: u64) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(Some(total), self.target());
        let style = ProgressStyle::with_template("{msg} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
        bar.set_message(what.to_owned());
        bar
    }

    /// A bar over `total` things.
    pub fn count_bar(&self, what: &str, total: u64) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(Some(total), self.target());
        let style = ProgressStyle::with_template("{msg} [{bar:30}] {pos} of {len}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
        bar.set_message(what.to_owned());
        bar
    }

    /// A line for what happens now; hidden when standard error is not a terminal. See [`Printer::set_stage`].
    pub fn stage_bar(&self) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(None, self.target());
        bar.set_style(ProgressStyle::with_template("{spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner()));
        if self.progress {
            bar.enable_steady_tick(Duration::from_millis(120));
        }
        bar
    }

    /// Puts `message` and, where it is known, how much is done of how much into a line of [`Printer::stage_bar`].
    pub fn set_stage(&self, bar: &ProgressBar, amount: Option<(u64, u64)>, message: String) {
        let template = if amount.is_some() { "{spinner} [{bar:30}] {msg}" } else { "{spinner} {msg} ({elapsed})" };
        if let Some((done, total)) = amount {
            bar.set_length(total);
            bar.set_position(done);
        }
        bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner()).progress_chars("=> "));
        bar.set_message(message);
    }

    fn target(&self) -> ProgressDrawTarget {
        if self.progress { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() }
    }
}

/// Writes a line of data. A closed pipe (`| head`) is an error like any other, so that the command stops.
pub fn line(text: &str) -> Result<()> {
    writeln!(std::io::stdout().lock(), "{text}").context("standard output cannot be written")
}

/// Writes bytes of data as they are.
pub fn bytes(content: &[u8]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(content).and_then(|()| out.flush()).context("standard output cannot be written")
}

/// Says what went wrong: the error, its causes, its hints.
pub fn error(error: &anyhow::Error) {
    let mut text = format!("error: {error}");
    for cause in error.chain().skip(1) {
        text.push_str(&format!("\n  because: {cause}"));
    }
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// A table without frame: columns padded to their widest cell and parted by two spaces. Lines are not cut to the terminal: what is cut cannot be copied.
pub fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> = std::iter::once(header.map(str::to_owned)).chain(rows).collect();
    let widths: [usize; N] = std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let line = |row: &[String; N]| {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_of_a_table_are_as_wide_as_their_widest_cell() {
        let rows = [["a".to_owned(), "long cell".to_owned(), String::new()], ["é".to_owned(), "b".to_owned(), "c".to_owned()]];
        assert_eq!(table(["X", "Y", "Z"], rows), "X  Y          Z\na  long cell\né  b          c\n");
    }
}
