//! What a log looks like from which parts were cut: the shown log, in which every cut is one line that says how much is missing.
//!
//! Everything that the server is told of a log, offsets, lengths, hashes, is about the shown log; only reading and punching holes is about the
//! file. A cut whose line was sent is never changed. Decisions on plain data; [`super::spool`] does what is decided.

use serde::{Deserialize, Serialize};

/// A part of a log's file that was cut out, in bytes of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cut {
    /// Where it begins.
    pub(super) start: u64,
    /// Where the file goes on.
    pub(super) end: u64,
    /// The limit that was exceeded, in bytes.
    pub(super) limit: u64,
    /// Whether it begins inside a line.
    pub(super) breaks_line: bool,
}

/// The cuts of one log: in rising order, each of at least one byte, none touching bytes of another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Cuts(Vec<Cut>);

/// A part of a shown log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Bytes of the file.
    File {
        /// Where they begin in the file.
        offset: u64,
        /// How many.
        length: u64,
    },
    /// The line, or a part of it, that stands for a cut.
    Line(Vec<u8>),
}

impl Piece {
    fn length(&self) -> u64 {
        match self {
            Self::File { length, .. } => *length,
            Self::Line(text) => text.len() as u64,
        }
    }

    /// The bytes of this piece from `from` up to `to`, both counted from its beginning.
    fn part(self, from: u64, to: u64) -> Self {
        match self {
            Self::File { offset, .. } => Self::File { offset: offset + from, length: to - from },
            // A line is short: its length fits any integer.
            Self::Line(text) => Self::Line(text[from as usize..to as usize].to_vec()),
        }
    }
}

/// How far a log has come: what the server has and what is on its way in bytes of the shown log, how long it is in bytes of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Progress {
    /// The server has everything before this.
    pub(super) acked: u64,
    /// Everything before this was sent at least once, whether it arrived or not.
    pub(super) sent: u64,
    /// Bytes in the file.
    pub(super) file_length: u64,
}

/// What is to be cut, before it is moved to the ends of lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// The last cut, of which nothing was sent yet, takes in more.
    Grow {
        /// Its new end.
        end: u64,
    },
    /// A new one.
    New {
        /// Where it begins.
        start: u64,
        /// Where it ends.
        end: u64,
        /// It may be moved to begin earlier, but not before this.
        floor: u64,
    },
}

impl Cut {
    fn bytes(&self) -> u64 {
        self.end - self.start
    }

    /// What is shown for it.
    fn line(&self) -> Vec<u8> {
        let before = if self.breaks_line { "\n" } else { "" };
        let (bytes, limit) = (self.bytes(), self.limit);
        format!(
            "{before}[trainyard: {bytes} bytes of this log were cut here: the server could not be reached and spool_limit_bytes = {limit} was exceeded]\n"
        )
        .into_bytes()
    }
}

impl Cuts {
    /// The cuts.
    pub(super) fn all(&self) -> &[Cut] {
        &self.0
    }

    /// How many bytes of the file they took.
    pub(super) fn bytes(&self) -> u64 {
        self.0.iter().map(Cut::bytes).sum()
    }

    /// Where the last one ends; a file that is shorter is not the one that was cut.
    pub(super) fn end(&self) -> u64 {
        self.0.last().map_or(0, |cut| cut.end)
    }

    /// The whole shown log of a file of `file_length` bytes, in order.
    pub(super) fn pieces(&self, file_length: u64) -> Vec<Piece> {
        let mut pieces = Vec::with_capacity(2 * self.0.len() + 1);
        let mut at = 0;
        for cut in &self.0 {
            pieces.push(Piece::File { offset: at, length: cut.start - at });
            pieces.push(Piece::Line(cut.line()));
            at = cut.end;
        }
        pieces.push(Piece::File { offset: at, length: file_length.saturating_sub(at) });
        pieces
    }

    /// Bytes of the shown log.
    pub(super) fn length(&self, file_length: u64) -> u64 {
        self.pieces(file_length).iter().map(Piece::length).sum()
    }

    /// What the shown log has from `offset` on, `length` bytes of it; fewer where it ends.
    pub(super) fn range(&self, file_length: u64, offset: u64, length: u64) -> Vec<Piece> {
        let (mut parts, mut at) = (Vec::new(), 0);
        for piece in self.pieces(file_length) {
            let end = at + piece.length();
            let (from, to) = (offset.max(at), (offset + length).min(end));
            if from < to {
                parts.push(piece.part(from - at, to - at));
            }
            at = end;
        }
        parts
    }

    /// Where the file goes on at `offset` of the shown log; inside a cut's line that is the cut's end.
    fn file_offset(&self, offset: u64) -> u64 {
        let mut left = offset;
        let mut at = 0;
        for cut in &self.0 {
            let before = cut.start - at;
            if left <= before {
                return at + left;
            }
            left = left.saturating_sub(before + cut.line().len() as u64);
            at = cut.end;
        }
        at + left
    }

    /// Bytes of the file between two places of it that are not cut.
    fn kept(&self, from: u64, to: u64) -> u64 {
        let cut: u64 = self.0.iter().map(|cut| cut.end.min(to).saturating_sub(cut.start.max(from))).sum();
        to.saturating_sub(from) - cut
    }

    /// Whether something of the last cut's line was sent.
    fn is_frozen(&self, sent: u64) -> bool {
        let Some(last) = self.0.last() else { return true };
        let before: u64 = Self(self.0[..self.0.len() - 1].to_vec()).length(last.start);
        sent > before
    }

    /// What has to go so that no more than `limit` bytes wait for the server: the first half of the limit stays, and the newest half. `None`:
    /// nothing, or nothing that may.
    pub(super) fn plan(&self, progress: Progress, limit: u64) -> Option<Plan> {
        let Progress { acked, sent, file_length } = progress;
        let acked_at = self.file_offset(acked);
        if self.kept(acked_at, file_length) <= limit {
            return None;
        }
        let half = limit / 2;
        // What comes before the cut counts, but never so much that nothing of the end is left.
        let end_beyond = |start: u64| file_length.saturating_sub(limit.saturating_sub(self.kept(acked_at, start)).max(half));
        if let Some(last) = self.0.last()
            && !self.is_frozen(sent)
        {
            let end = end_beyond(last.start);
            return (end > last.end).then_some(Plan::Grow { end });
        }
        let floor = self.file_offset(sent).max(self.end());
        let start = floor.max(acked_at.saturating_add(half));
        let end = end_beyond(start);
        (end > start).then_some(Plan::New { start, end, floor })
    }

    /// The cuts with one more.
    pub(super) fn with(&self, cut: Cut) -> Self {
        Self(self.0.iter().copied().chain([cut]).collect())
    }

    /// The cuts with the last one ending at `end`, for exceeding `limit`.
    pub(super) fn grown(&self, end: u64, limit: u64) -> Self {
        let mut cuts = self.0.clone();
        if let Some(last) = cuts.last_mut() {
            last.end = end;
            last.limit = limit;
        }
        Self(cuts)
    }
}

/// How far before its end `window` has its last line's end: where a cut that begins behind `window` can begin instead.
pub(super) fn back_to_line_end(window: &[u8]) -> Option<u64> {
    window.iter().rev().position(|byte| *byte == b'\n').map(|distance| distance as u64)
}

/// How far behind its second byte `window`, which begins one byte before the place, has a line's beginning.
pub(super) fn on_to_line_start(window: &[u8]) -> Option<u64> {
    window.iter().position(|byte| *byte == b'\n').map(|distance| distance as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(start: u64, end: u64) -> Cut {
        Cut { start, end, limit: 100, breaks_line: false }
    }

    fn show(cuts: &Cuts, file: &[u8], offset: u64, length: u64) -> String {
        let bytes = cuts.range(file.len() as u64, offset, length).into_iter().flat_map(|piece| match piece {
            Piece::File { offset, length } => file[offset as usize..(offset + length) as usize].to_vec(),
            Piece::Line(text) => text,
        });
        String::from_utf8(bytes.collect()).unwrap()
    }

    const LINE: &str =
        "[trainyard: 4 bytes of this log were cut here: the server could not be reached and spool_limit_bytes = 100 was exceeded]\n";

    #[test]
    fn a_log_without_cuts_is_shown_as_it_is() {
        let cuts = Cuts::default();
        assert_eq!(show(&cuts, b"one\ntwo\n", 0, 100), "one\ntwo\n");
        assert_eq!(show(&cuts, b"one\ntwo\n", 2, 4), "e\ntw");
        assert_eq!((cuts.length(8), cuts.file_offset(5)), (8, 5));
    }

    #[test]
    fn a_cut_is_a_line_of_its_own() {
        let cuts = Cuts::default().with(cut(4, 8));
        let file = b"one\ntwo\nsix\n";
        assert_eq!(show(&cuts, file, 0, 1000), format!("one\n{LINE}six\n"));
        assert_eq!(cuts.length(12), 8 + LINE.len() as u64);
        assert_eq!(show(&cuts, file, 2, 5), format!("e\n{}", &LINE[..3]));
        let mid = Cuts::default().with(Cut { breaks_line: true, ..cut(2, 6) });
        assert_eq!(show(&mid, file, 0, 1000), format!("on\n{LINE}o\nsix\n"));
    }

    #[test]
    fn places_of_the_shown_log_are_found_in_the_file() {
        let cuts = Cuts::default().with(cut(4, 8)).with(cut(10, 14));
        let line = LINE.len() as u64;
        let table =
            [(0, 0), (4, 4), (5, 8), (4 + line, 8), (5 + line, 9), (6 + line, 10), (7 + line, 14), (6 + 2 * line, 14), (7 + 2 * line, 15)];
        for (shown, file) in table {
            assert_eq!(cuts.file_offset(shown), file, "{shown}");
        }
    }

    #[test]
    fn the_first_and_the_newest_half_of_the_limit_stay() {
        let progress = Progress { acked: 1000, sent: 1000, file_length: 1100 };
        assert_eq!(Cuts::default().plan(progress, 100), None, "just fits");
        let over = Progress { file_length: 1500, ..progress };
        assert_eq!(Cuts::default().plan(over, 100), Some(Plan::New { start: 1050, end: 1450, floor: 1000 }));
    }

    #[test]
    fn what_is_on_its_way_is_not_cut() {
        let progress = Progress { acked: 0, sent: 80, file_length: 500 };
        assert_eq!(Cuts::default().plan(progress, 100), Some(Plan::New { start: 80, end: 450, floor: 80 }));
        let all = Progress { sent: 500, ..progress };
        assert_eq!(Cuts::default().plan(all, 100), None);
    }

    #[test]
    fn a_cut_grows_until_its_line_is_sent_and_then_another_one_begins() {
        let cuts = Cuts::default().with(cut(50, 150));
        let line = cuts.all()[0].line().len() as u64;
        let unsent = Progress { acked: 0, sent: 50, file_length: 300 };
        assert_eq!(cuts.plan(unsent, 100), Some(Plan::Grow { end: 250 }));
        assert_eq!(cuts.plan(Progress { acked: 40, ..unsent }, 100), Some(Plan::Grow { end: 210 }), "less was waiting before it");
        let sent = Progress { acked: 50 + line, sent: 50 + line, file_length: 300 };
        assert_eq!(cuts.plan(sent, 100), Some(Plan::New { start: 200, end: 250, floor: 150 }));
        let begun = Progress { sent: 51, ..unsent };
        assert!(matches!(cuts.plan(begun, 100), Some(Plan::New { floor: 150, .. })));
    }

    #[test]
    fn the_ends_of_lines_are_found() {
        assert_eq!(back_to_line_end(b"one\ntw"), Some(2));
        assert_eq!(back_to_line_end(b"one\n"), Some(0));
        assert_eq!(back_to_line_end(b"one"), None);
        assert_eq!(on_to_line_start(b"\ntwo"), Some(0), "the byte before ends a line: no need to move");
        assert_eq!(on_to_line_start(b"xo\ntwo"), Some(2));
        assert_eq!(on_to_line_start(b"xyz"), None);
    }
}
