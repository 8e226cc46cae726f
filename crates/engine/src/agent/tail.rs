//! How a growing file is followed: what to send next, and when to look again. Decisions on plain data.
//!
//! Looking at the file instead of asking the kernel for notices: notices are limited per user (128 at a time by default, fewer than the agents
//! of a busy machine) and do not come from network file systems, so looking must be good enough anyway.

use std::time::Duration;

use super::{client::LogAnswer, walk::Stamp};

/// Most bytes of a log in one request.
pub(super) const CHUNK_BYTES: u64 = 256 << 10;

/// Between two requests for logs that keep growing: what is printed meanwhile goes together.
pub(super) const BATCH_PAUSE: Duration = Duration::from_millis(100);

/// Shortest and longest pause between two looks.
const LOOK_PAUSE: (Duration, Duration) = (Duration::from_millis(2), Duration::from_secs(1));

/// A file that is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tail {
    inode: u64,
    /// Bytes that the server has, as far as known.
    offset: u64,
    followed: Followed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Followed {
    /// It only grew so far.
    Growing,
    /// It shrank or was replaced: what was sent is not its beginning any more. Sent whole at the end.
    Rewritten,
}

/// What to do after a look at a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing new.
    Wait,
    /// These bytes.
    Send {
        /// Where they begin.
        offset: u64,
        /// How many.
        length: u64,
    },
}

impl Tail {
    /// A file that was just found: nothing of it was sent.
    pub(super) fn new(stamp: &Stamp) -> Self {
        Self { inode: stamp.inode, offset: 0, followed: Followed::Growing }
    }

    /// Takes in what the file is like now.
    pub(super) fn look(&mut self, stamp: &Stamp) -> Next {
        if stamp.inode != self.inode || stamp.length < self.offset {
            self.followed = Followed::Rewritten;
        }
        if self.followed == Followed::Rewritten || stamp.length == self.offset {
            return Next::Wait;
        }
        Next::Send { offset: self.offset, length: (stamp.length - self.offset).min(CHUNK_BYTES) }
    }

    /// Takes in what the server said to bytes up to `end`.
    pub(super) fn answered(&mut self, end: u64, answer: LogAnswer) {
        self.offset = match answer {
            // The server's word counts: after a crash of the agent before this one it may have more already.
            LogAnswer::Done(Some(length)) => length.max(end),
            LogAnswer::Done(None) => end,
            LogAnswer::Holds(length) => length,
        };
    }

    /// Bytes that the server has, as far as known.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether it was found to be no log: something that only grows.
    pub(super) fn is_rewritten(&self) -> bool {
        self.followed == Followed::Rewritten
    }
}

/// How long to wait before the next look when nothing has come for `quiet`: a fifth of it. So nothing is noticed later than after a fifth
/// more time than it took to come, and a log that is silent costs one look a second.
pub(super) fn look_pause(quiet: Duration) -> Duration {
    (quiet / 5).clamp(LOOK_PAUSE.0, LOOK_PAUSE.1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stamp(inode: u64, length: u64) -> Stamp {
        Stamp { inode, length, modified_ns: 0, changed_ns: 0 }
    }

    #[test]
    fn a_file_is_sent_from_where_the_server_is() {
        let mut tail = Tail::new(&stamp(1, 0));
        assert_eq!(tail.look(&stamp(1, 0)), Next::Wait);
        assert_eq!(tail.look(&stamp(1, 10)), Next::Send { offset: 0, length: 10 });
        tail.answered(10, LogAnswer::Done(Some(10)));
        assert_eq!(tail.look(&stamp(1, 10)), Next::Wait);
        tail.answered(10, LogAnswer::Holds(4));
        assert_eq!(tail.look(&stamp(1, 12)), Next::Send { offset: 4, length: 8 });
    }

    #[test]
    fn a_file_that_shrank_or_was_replaced_is_not_followed_any_more() {
        for now in [stamp(1, 3), stamp(2, 100)] {
            let mut tail = Tail::new(&stamp(1, 10));
            tail.answered(10, LogAnswer::Done(Some(10)));
            assert_eq!(tail.look(&now), Next::Wait);
            assert!(tail.is_rewritten());
            assert_eq!(tail.look(&stamp(1, 1000)), Next::Wait, "growing again does not make it a log");
        }
    }

    #[test]
    fn the_first_line_is_looked_for_often_and_a_silent_log_seldom() {
        assert_eq!(look_pause(Duration::ZERO), Duration::from_millis(2));
        assert_eq!(look_pause(Duration::from_millis(50)), Duration::from_millis(10));
        assert_eq!(look_pause(Duration::from_secs(3600)), Duration::from_secs(1));
    }

    proptest! {
        /// A server that answers at random with less, with more, or with what was sent, in the end has every byte.
        #[test]
        fn every_byte_arrives_whatever_the_server_says(growth in proptest::collection::vec(0u64..600_000, 1..12), lies in proptest::collection::vec(any::<u8>(), 0..40)) {
            let (mut tail, mut file, mut server) = (Tail::new(&stamp(9, 0)), 0u64, 0u64);
            let mut lies = lies.into_iter();
            for growth in growth {
                file += growth;
                while let Next::Send { offset, length } = tail.look(&stamp(9, file)) {
                    prop_assert!(length > 0 && length <= CHUNK_BYTES && offset + length <= file);
                    let answer = match lies.next() {
                        // It lost something (a restored disk), or never got the request.
                        Some(lie) if lie % 3 == 0 => { server = server.min(u64::from(lie) * 1000); LogAnswer::Holds(server) }
                        _ if offset > server => LogAnswer::Holds(server),
                        _ => { server = server.max(offset + length); LogAnswer::Done(Some(server)) }
                    };
                    tail.answered(offset + length, answer);
                }
            }
            prop_assert_eq!(server, file);
            prop_assert!(!tail.is_rewritten());
        }

        #[test]
        fn pauses_stay_within_their_bounds(quiet_ms in any::<u32>()) {
            let pause = look_pause(Duration::from_millis(quiet_ms.into()));
            prop_assert!((LOOK_PAUSE.0..=LOOK_PAUSE.1).contains(&pause));
        }
    }
}
