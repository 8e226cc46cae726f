//! Whether a run whose attempt failed is tried again, and when. Pure: the policy, what was tried, and the cause decide.

use serde::{Deserialize, Serialize};

use super::cause::{Cause, RetryClass};

/// How often a run is tried again, by who is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryPolicy {
    /// Retries after failures of machines and of this server.
    pub infrastructure: u32,
    /// Retries after failures of the user's code.
    pub user_code: u32,
    /// Wait before the first retry, in seconds; each further one waits twice as long as the one before, up to ten minutes.
    pub backoff_seconds: u64,
}

/// No retry waits longer than this, unless the first was told to.
pub(super) const MAX_BACKOFF_SECONDS: u64 = 600;

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { infrastructure: 2, user_code: 0, backoff_seconds: 10 }
    }
}

/// What a definition says about retries; what it leaves out is the target's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryWish {
    /// See [`RetryPolicy::infrastructure`].
    pub infrastructure: Option<u32>,
    /// See [`RetryPolicy::user_code`].
    pub user_code: Option<u32>,
    /// See [`RetryPolicy::backoff_seconds`].
    pub backoff_seconds: Option<u64>,
}

/// How often a run was tried again so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retries {
    /// After failures of machines and of this server.
    pub infrastructure: u32,
    /// After failures of the user's code.
    pub user_code: u32,
    /// Nothing is tried again: the server was restored from a backup, and what the run did since the backup is not known.
    #[serde(default)]
    pub held: bool,
}

/// That there is another try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// What has been tried then.
    pub retries: Retries,
    /// Which retry of its class it is, from 1.
    pub number: u32,
    /// Of how many.
    pub of: u32,
    /// How long to wait before, in seconds.
    pub wait_seconds: u64,
}

impl RetryPolicy {
    /// This policy, with what the definition says instead.
    pub fn with(self, wish: RetryWish) -> Self {
        Self {
            infrastructure: wish.infrastructure.unwrap_or(self.infrastructure),
            user_code: wish.user_code.unwrap_or(self.user_code),
            backoff_seconds: wish.backoff_seconds.unwrap_or(self.backoff_seconds),
        }
    }

    /// The next try after `cause`, if there is one.
    pub fn next(&self, retries: Retries, cause: &Cause) -> Option<Retry> {
        if retries.held {
            return None;
        }
        let (number, of, retries) = match cause.retry_class()? {
            RetryClass::Infrastructure => {
                let number = retries.infrastructure.saturating_add(1);
                (number, self.infrastructure, Retries { infrastructure: number, ..retries })
            }
            RetryClass::UserCode => {
                let number = retries.user_code.saturating_add(1);
                (number, self.user_code, Retries { user_code: number, ..retries })
            }
        };
        (number <= of).then(|| Retry { retries, number, of, wait_seconds: self.wait_seconds(number) })
    }

    fn wait_seconds(&self, number: u32) -> u64 {
        let doubled = 2_u64.saturating_pow(number.saturating_sub(1)).saturating_mul(self.backoff_seconds);
        doubled.min(MAX_BACKOFF_SECONDS.max(self.backoff_seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost() -> Cause {
        Cause::AgentLost { message: "gone".into() }
    }

    #[test]
    fn machines_are_given_two_more_chances_and_code_none() {
        let policy = RetryPolicy::default();
        let first = policy.next(Retries::default(), &lost()).unwrap();
        assert_eq!((first.number, first.of, first.wait_seconds), (1, 2, 10));
        let second = policy.next(first.retries, &lost()).unwrap();
        assert_eq!((second.number, second.wait_seconds), (2, 20));
        assert_eq!(policy.next(second.retries, &lost()), None);
        assert_eq!(policy.next(Retries::default(), &Cause::ExitCode { code: 1 }), None);
    }

    #[test]
    fn each_class_has_its_own_count() {
        let policy = RetryPolicy { infrastructure: 1, user_code: 1, backoff_seconds: 0 };
        let after = policy.next(Retries::default(), &lost()).unwrap().retries;
        let after = policy.next(after, &Cause::OutOfMemory { message: "full".into() }).unwrap().retries;
        assert_eq!(after, Retries { infrastructure: 1, user_code: 1, held: false });
        assert_eq!(policy.next(after, &lost()), None);
    }

    #[test]
    fn what_would_end_the_same_way_is_not_tried_again() {
        let policy = RetryPolicy { infrastructure: 9, user_code: 9, backoff_seconds: 1 };
        let message = String::new;
        for cause in [
            Cause::Completed,
            Cause::TimeLimit { limit_seconds: 1, of: None },
            Cause::Cancelled { by: None, why: None },
            Cause::EnvironmentFailed { message: message() },
            Cause::SnapshotFailed { message: message() },
            Cause::StartFailed { message: message(), by_definition: true },
            Cause::Reported { message: message() },
        ] {
            assert_eq!(policy.next(Retries::default(), &cause), None, "{cause:?}");
        }
        assert_eq!(policy.next(Retries { held: true, ..Retries::default() }, &lost()), None);
    }

    #[test]
    fn waits_double_up_to_a_limit_and_never_below_what_was_asked_for() {
        let policy = RetryPolicy { infrastructure: 100, user_code: 0, backoff_seconds: 10 };
        let waits = [1, 2, 3, 4, 90].map(|number| policy.wait_seconds(number));
        assert_eq!(waits, [10, 20, 40, 80, MAX_BACKOFF_SECONDS]);
        assert_eq!(RetryPolicy { backoff_seconds: 5000, ..policy }.wait_seconds(3), 5000);
    }

    #[test]
    fn a_definition_says_only_what_differs() {
        let policy = RetryPolicy::default().with(RetryWish { user_code: Some(3), ..RetryWish::default() });
        assert_eq!(policy, RetryPolicy { infrastructure: 2, user_code: 3, backoff_seconds: 10 });
    }

    #[test]
    fn every_label_is_listed() {
        let all = [lost().label(), Cause::Completed.label(), Cause::NodeLost { message: String::new() }.label()];
        assert!(all.iter().all(|label| Cause::LABELS.contains(label)));
    }
}
