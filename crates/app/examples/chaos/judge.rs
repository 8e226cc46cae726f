//! Whether a run ended as it had to: a pure function of its plan, what was done to it, what its code left outside, and what the server
//! says. The rule is that every departure from the plan needs a recorded kill, cut or wish of exactly that attempt.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use trainyard_core::run::{Cause, RetryClass, RunState};

use crate::{
    ledger::Record,
    observe::{Seen, Tried},
    plan::{End, RunPlan, TIME_LIMIT_SECONDS},
    world::RETRIES,
};

/// What kind of promise was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Broken {
    /// An accepted run is not there, or does not end.
    Lost,
    /// Code ran more often than the history says, or twice in one attempt.
    Twice,
    /// Status or cause is not what happened.
    WrongEnd,
    /// Logs or outputs lack something that the code had written.
    Incomplete,
    /// A process, folder or file is left of what has ended.
    LeftOver,
    /// The timeline or the rows contradict themselves.
    History,
    /// The server refused or did what it never should.
    Misbehaved,
}

impl Broken {
    /// All kinds, in the order of the report.
    pub(crate) const ALL: [Self; 7] =
        [Self::Lost, Self::Twice, Self::WrongEnd, Self::Incomplete, Self::LeftOver, Self::History, Self::Misbehaved];

    /// Words for the report.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Lost => "runs lost",
            Self::Twice => "runs executed twice",
            Self::WrongEnd => "wrong end states or causes",
            Self::Incomplete => "logs or outputs incomplete",
            Self::LeftOver => "processes or files left over",
            Self::History => "contradictions in the rows",
            Self::Misbehaved => "other misbehaviour of the server",
        }
    }
}

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) broken: Broken,
    /// The run or thing it is about.
    pub(crate) about: String,
    pub(crate) expected: String,
    pub(crate) found: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}\n    expected: {}\n    found:    {}", self.broken.words(), self.about, self.expected, self.found)
    }
}

/// What the code of the runs left outside.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outside {
    /// Run and attempt of each line.
    pub(crate) lines: Vec<(String, String)>,
    /// What the code of each attempt said.
    pub(crate) said: BTreeMap<String, String>,
}

/// Judges one run.
pub(crate) fn judge(plan: &RunPlan, seen: Option<&Seen>, outside: &Outside, record: &Record) -> Vec<Violation> {
    let mut case = Case { plan, outside, record, found: Vec::new() };
    match seen {
        None => case.broken(Broken::Lost, "the run is there: its submission was answered", "the server does not know it"),
        Some(seen) => case.judge(seen),
    }
    case.found
}

struct Case<'a> {
    plan: &'a RunPlan,
    outside: &'a Outside,
    record: &'a Record,
    found: Vec<Violation>,
}

impl Case<'_> {
    fn broken(&mut self, broken: Broken, expected: impl Into<String>, found: impl Into<String>) {
        self.found.push(Violation {
            broken,
            about: format!("{} ({:?})", self.plan.id, self.plan.end),
            expected: expected.into(),
            found: found.into(),
        });
    }

    fn judge(&mut self, seen: &Seen) {
        let Some(state) = state(&seen.status) else {
            return self.broken(Broken::Lost, "the run ends", format!("it is {} for ever: {:?}", seen.status, causes(seen)));
        };
        self.lines(seen);
        for (index, attempt) in seen.attempts.iter().enumerate() {
            self.attempt(seen, attempt);
            if attempt.number != index as i64 + 1 {
                self.broken(Broken::History, format!("attempt {}", index + 1), format!("attempt {}", attempt.number));
            }
        }
        self.end(seen, state);
        self.retries(seen);
        self.timeline(seen, state);
    }

    /// One line for each attempt whose code was started, and none from anywhere else.
    fn lines(&mut self, seen: &Seen) {
        let mut lines: BTreeMap<&str, u64> = BTreeMap::new();
        for (_, attempt) in self.outside.lines.iter().filter(|(run, _)| *run == self.plan.id) {
            *lines.entry(attempt).or_default() += 1;
        }
        for (attempt, count) in &lines {
            if *count > 1 {
                self.broken(Broken::Twice, format!("one line of attempt {attempt}"), format!("{count} lines"));
            }
            if !seen.attempts.iter().any(|tried| tried.id == *attempt) {
                self.broken(Broken::Twice, "only attempts in the rows run code", format!("a line of attempt {attempt}, which has no row"));
            }
        }
        for attempt in &seen.attempts {
            let (ran, started) = (lines.contains_key(attempt.id.as_str()), has_event(seen, "Start", &attempt.id));
            let killed = self.agent_was_killed(attempt);
            let stopped = killed || self.record.agents_ended.contains(&attempt.id) || self.is_cancelled();
            if ran && !started && !killed {
                self.broken(
                    Broken::History,
                    "a Start in the timeline: the code ran and its agent was not killed",
                    format!("none of attempt {}", attempt.id),
                );
            }
            if started && !ran && !stopped {
                let found = format!("none of attempt {}, which ended as {:?}", attempt.id, attempt.cause);
                self.broken(Broken::WrongEnd, "a line outside: the code was started and nobody stopped it", found);
            }
        }
    }

    fn attempt(&mut self, seen: &Seen, attempt: &Tried) {
        let Some(cause) = &attempt.cause else {
            // A wish to cancel may end a run before its attempt has any.
            return self.broken(Broken::History, format!("a cause of attempt {}", attempt.id), format!("none; the run is {}", seen.status));
        };
        if let Err(expected) = self.allows(attempt, cause) {
            self.broken(Broken::WrongEnd, expected, format!("attempt {} ended as {cause:?}; its log: {:?}", attempt.id, tail(attempt)));
        }
        self.files(attempt, cause);
    }

    /// Whether the attempt may have ended like that; else what would have been right.
    fn allows(&self, attempt: &Tried, cause: &Cause) -> Result<(), String> {
        let need = |holds: bool, expected: &str| if holds { Ok(()) } else { Err(expected.to_owned()) };
        let ran_to_its_end = self.ran_to_its_end(attempt);
        let trouble = self.had_no_disk(attempt);
        match cause {
            Cause::Completed => {
                need(self.plan.end == End::Exit(0) && ran_to_its_end, "success only of code that ran to its end and exits with 0")
            }
            Cause::ExitCode { code } => {
                need(self.plan.end == End::Exit(*code) && *code != 0 && ran_to_its_end, "the exit code of the plan, after the last line")
            }
            Cause::Signal { signal } => {
                let own = self.plan.end == End::Signal(*signal) && ran_to_its_end;
                let sent = self.record.code_signals.get(&attempt.id).is_some_and(|sent| sent.contains(signal));
                need(own || sent, "a signal that the code or this harness sent")
            }
            Cause::TimeLimit { limit_seconds, .. } => {
                need(self.plan.end == End::TimeLimit && *limit_seconds == TIME_LIMIT_SECONDS, "a time limit only for code that has one")
            }
            Cause::Cancelled { .. } => need(self.is_cancelled(), "cancelled only if somebody asked for it"),
            Cause::AgentLost { .. } => need(self.agent_was_killed(attempt) || trouble, "a lost agent only if it was killed"),
            Cause::Preempted { .. } => need(self.record.agents_ended.contains(&attempt.id), "preempted only if the agent got TERM"),
            Cause::StartFailed { by_definition, .. } => {
                need(!by_definition && trouble, "no failed start: the definition is good and the disk was not full")
            }
            Cause::SnapshotFailed { .. } | Cause::EnvironmentFailed { .. } => {
                need(trouble, "a snapshot and an environment that are ready: the disk was not full")
            }
            Cause::OutOfMemory { .. } | Cause::NodeLost { .. } | Cause::Reported { .. } | Cause::Part { .. } | Cause::DataFailed { .. } => {
                Err("nothing that did not happen here".into())
            }
        }
    }

    /// What the code wrote is kept: the log begins as it must, and holds everything that the code said outside after saying it there.
    fn files(&mut self, attempt: &Tried, cause: &Cause) {
        if self.had_no_disk(attempt) {
            return;
        }
        let full = self.full_log(&attempt.id);
        let said = self.outside.said.get(&attempt.id).map_or("", String::as_str);
        let log = attempt.log.as_deref().unwrap_or_default();
        if !full.starts_with(log) || log.len() < said.len() {
            let expected = format!("a log that begins like the code's words and holds at least {} bytes of them", said.len());
            self.broken(
                Broken::Incomplete,
                expected,
                format!("attempt {} ({}) has {} bytes: {:?}", attempt.id, cause.label(), log.len(), tail(attempt)),
            );
        }
        let expected = format!("result of {}\n", attempt.id);
        if said.lines().any(|line| line == "stored") && attempt.output.as_deref() != Some(&expected) {
            self.broken(
                Broken::Incomplete,
                format!("the output {expected:?}"),
                format!("attempt {} ({}) has {:?}", attempt.id, cause.label(), attempt.output),
            );
        }
    }

    /// The run ended as its last attempt did, or was cancelled while it had none.
    fn end(&mut self, seen: &Seen, state: RunState) {
        let last = seen.attempts.last().and_then(|attempt| attempt.cause.as_ref());
        let follows = last.is_some_and(|cause| cause.end_state() == state);
        // Cancelled before the first attempt, or while it waited for another.
        let waited = state == RunState::Canceled && self.is_cancelled() && last.is_none_or(|cause| cause.retry_class().is_some());
        if !follows && !waited {
            self.broken(Broken::WrongEnd, format!("the end of the last attempt, {last:?}"), format!("{state:?}"));
        }
        if (state == RunState::Failed) != seen.error.is_some() {
            self.broken(Broken::History, "an error exactly if the run failed", format!("{state:?} with the error {:?}", seen.error));
        }
    }

    /// As many attempts as the rule gives, and each but the last for a reason.
    fn retries(&mut self, seen: &Seen) {
        let allowed = |class: RetryClass| match class {
            RetryClass::Infrastructure => RETRIES,
            RetryClass::UserCode => self.plan.user_retries,
        };
        let mut used: BTreeMap<&str, u32> = BTreeMap::new();
        let (mut broken, count) = (Vec::new(), seen.attempts.len());
        for (index, attempt) in seen.attempts.iter().enumerate() {
            let Some(cause) = &attempt.cause else { continue };
            let class = cause.retry_class();
            let left = class.is_some_and(|class| {
                let used = used.entry(if class == RetryClass::UserCode { "code" } else { "machines" }).or_default();
                *used += 1;
                *used <= allowed(class)
            });
            match (index + 1 == count, left) {
                (false, false) => broken.push((Broken::Twice, "no other try after this", format!("attempt {} after {cause:?}", index + 2))),
                (true, true) if !self.is_cancelled() => broken.push((Broken::WrongEnd, "another try", format!("none after {cause:?}"))),
                _ => {}
            }
        }
        for (kind, expected, found) in broken {
            self.broken(kind, expected, found);
        }
    }

    fn timeline(&mut self, seen: &Seen, state: RunState) {
        let numbers: Vec<i64> = seen.timeline.iter().map(|(number, _, _)| *number).collect();
        if numbers.iter().zip(1..).any(|(number, expected)| *number != expected) {
            self.broken(Broken::History, "events numbered from 1 without a gap", format!("{numbers:?}"));
        }
        let ends: Vec<usize> = (0..seen.timeline.len()).filter(|index| state_of(&seen.timeline[*index].1).is_some()).collect();
        let last = seen.timeline.last().and_then(|(_, name, _)| state_of(name));
        if ends.len() != 1 || last != Some(state) {
            let names: Vec<&str> = seen.timeline.iter().map(|(_, name, _)| name.rsplit('.').next().unwrap_or(name)).collect();
            self.broken(Broken::History, format!("one end in the timeline, {state:?}, and nothing after it"), format!("{names:?}"));
        }
        let starts: BTreeSet<&str> = seen.attempts.iter().map(|attempt| attempt.id.as_str()).collect();
        for attempt in starts {
            let count = seen.timeline.iter().filter(|(_, name, data)| name.ends_with(".Start") && data["AttemptId"] == attempt).count();
            if count > 1 {
                self.broken(Broken::Twice, format!("one start of attempt {attempt}"), format!("{count} in the timeline"));
            }
        }
    }

    fn is_cancelled(&self) -> bool {
        self.record.cancelled.contains(&self.plan.id)
    }

    fn agent_was_killed(&self, attempt: &Tried) -> bool {
        self.record.agents_killed.contains(&attempt.id)
    }

    fn had_no_disk(&self, attempt: &Tried) -> bool {
        self.record.disk_was_full || self.record.attempts_without_disk.contains(&attempt.id)
    }

    /// Whether the code came to its last line; without a disk its log may not say so, but what it said outside does.
    fn ran_to_its_end(&self, attempt: &Tried) -> bool {
        let full = self.full_log(&attempt.id);
        let outside = self.outside.said.get(&attempt.id).is_some_and(|said| *said == full);
        attempt.log.as_deref() == Some(&full) || (self.had_no_disk(attempt) && outside)
    }

    fn full_log(&self, attempt: &str) -> String {
        let lines: String = (1..=self.plan.lines).map(|number| format!("line {number}\n")).collect();
        format!("begin {attempt}\n{lines}stored\nend\n")
    }
}

fn state(status: &str) -> Option<RunState> {
    match status {
        "Completed" => Some(RunState::Completed),
        "Failed" => Some(RunState::Failed),
        "Canceled" | "Cancelled" => Some(RunState::Canceled),
        _ => None,
    }
}

/// The end state that an event of this name stands for.
fn state_of(name: &str) -> Option<RunState> {
    name.rsplit('.').next().and_then(state)
}

fn has_event(seen: &Seen, name: &str, attempt: &str) -> bool {
    seen.timeline.iter().any(|(_, event, data)| event.ends_with(&format!(".{name}")) && data["AttemptId"] == attempt)
}

fn causes(seen: &Seen) -> Vec<Option<&Cause>> {
    seen.attempts.iter().map(|attempt| attempt.cause.as_ref()).collect()
}

/// The last words of a log.
fn tail(attempt: &Tried) -> Option<String> {
    let log = attempt.log.as_deref()?;
    let last: Vec<&str> = log.lines().rev().take(4).collect();
    Some(last.into_iter().rev().collect::<Vec<_>>().join(" / "))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    fn plan(end: End) -> RunPlan {
        RunPlan { id: "r".into(), at: Duration::ZERO, end, sleep: Duration::ZERO, lines: 1, cancel_after: None, user_retries: 0 }
    }

    fn full(attempt: &str) -> String {
        format!("begin {attempt}\nline 1\nstored\nend\n")
    }

    fn tried(number: i64, cause: Cause) -> Tried {
        let id = format!("a{number}");
        Tried { log: Some(full(&id)), output: Some(format!("result of {id}\n")), cause: Some(cause), number, id }
    }

    fn seen(status: &str, attempts: Vec<Tried>) -> Seen {
        let mut timeline = vec![(1, "x.Queued".to_owned(), json!({}))];
        for attempt in &attempts {
            timeline.push((timeline.len() as i64 + 1, "x.Start".into(), json!({ "AttemptId": attempt.id })));
        }
        timeline.push((timeline.len() as i64 + 1, format!("x.{status}"), json!({})));
        Seen { status: status.into(), error: (status == "Failed").then(|| "why".into()), attempts, timeline }
    }

    fn outside(attempts: &[&str]) -> Outside {
        Outside {
            lines: attempts.iter().map(|attempt| ("r".to_owned(), (*attempt).to_owned())).collect(),
            said: attempts.iter().map(|attempt| ((*attempt).to_owned(), full(attempt))).collect(),
        }
    }

    fn kinds(found: Vec<Violation>) -> Vec<Broken> {
        found.into_iter().map(|violation| violation.broken).collect()
    }

    fn lost() -> Cause {
        Cause::AgentLost { message: "gone".into() }
    }

    #[test]
    fn what_ends_as_planned_is_right() {
        let record = Record::default();
        for (end, status, cause) in [
            (End::Exit(0), "Completed", Cause::Completed),
            (End::Exit(3), "Failed", Cause::ExitCode { code: 3 }),
            (End::Signal(9), "Failed", Cause::Signal { signal: 9 }),
        ] {
            let found = judge(&plan(end), Some(&seen(status, vec![tried(1, cause)])), &outside(&["a1"]), &record);
            assert_eq!(found, []);
        }
    }

    #[test]
    fn a_run_that_is_not_there_or_does_not_end_is_lost() {
        let record = Record::default();
        assert_eq!(kinds(judge(&plan(End::Exit(0)), None, &outside(&[]), &record)), [Broken::Lost]);
        assert_eq!(kinds(judge(&plan(End::Exit(0)), Some(&seen("Running", vec![])), &outside(&[]), &record)), [Broken::Lost]);
    }

    #[test]
    fn two_lines_of_an_attempt_or_a_line_of_an_unknown_one_is_running_twice() {
        let good = seen("Completed", vec![tried(1, Cause::Completed)]);
        let twice = outside(&["a1", "a1"]);
        assert_eq!(kinds(judge(&plan(End::Exit(0)), Some(&good), &twice, &Record::default())), [Broken::Twice]);
        let unknown = outside(&["a1", "a9"]);
        assert_eq!(kinds(judge(&plan(End::Exit(0)), Some(&good), &unknown, &Record::default())), [Broken::Twice]);
    }

    #[test]
    fn a_success_that_is_tried_again_is_running_twice() {
        let again = seen("Completed", vec![tried(1, Cause::Completed), tried(2, Cause::Completed)]);
        assert_eq!(kinds(judge(&plan(End::Exit(0)), Some(&again), &outside(&["a1", "a2"]), &Record::default())), [Broken::Twice]);
    }

    #[test]
    fn a_lost_agent_needs_a_recorded_kill_and_is_followed_by_another_try() {
        let retried = seen("Completed", vec![tried(1, lost()), tried(2, Cause::Completed)]);
        let killed = Record { agents_killed: ["a1".to_owned()].into(), ..Record::default() };
        assert_eq!(judge(&plan(End::Exit(0)), Some(&retried), &outside(&["a1", "a2"]), &killed), []);
        assert_eq!(kinds(judge(&plan(End::Exit(0)), Some(&retried), &outside(&["a1", "a2"]), &Record::default())), [Broken::WrongEnd]);
        let given_up = seen("Failed", vec![tried(1, lost())]);
        assert_eq!(kinds(judge(&plan(End::Exit(0)), Some(&given_up), &outside(&["a1"]), &killed)), [Broken::WrongEnd]);
    }

    #[test]
    fn killed_code_is_never_a_success() {
        let mut cut = tried(1, Cause::Completed);
        cut.log = Some("begin a1\n".into());
        let mut traces = outside(&["a1"]);
        traces.said.insert("a1".into(), "begin a1\n".into());
        let killed = Record { code_signals: [("a1".to_owned(), vec![9])].into(), ..Record::default() };
        assert_eq!(kinds(judge(&plan(End::Exit(0)), Some(&seen("Completed", vec![cut.clone()])), &traces, &killed)), [Broken::WrongEnd]);
        cut.cause = Some(Cause::Signal { signal: 9 });
        assert_eq!(judge(&plan(End::Exit(0)), Some(&seen("Failed", vec![cut])), &traces, &killed), []);
    }

    #[test]
    fn only_what_was_cancelled_is_cancelled() {
        let end = seen("Canceled", vec![tried(1, Cause::Cancelled { by: None, why: None })]);
        let asked = Record { cancelled: ["r".to_owned()].into(), ..Record::default() };
        assert_eq!(judge(&plan(End::Exit(0)), Some(&end), &outside(&["a1"]), &asked), []);
        assert_eq!(kinds(judge(&plan(End::Exit(0)), Some(&end), &outside(&["a1"]), &Record::default())), [Broken::WrongEnd]);
        assert_eq!(judge(&plan(End::Exit(0)), Some(&seen("Canceled", vec![])), &outside(&[]), &asked), [], "while it waited");
    }

    #[test]
    fn words_that_the_code_said_must_be_in_the_log_and_its_output_kept() {
        let mut short = tried(1, Cause::ExitCode { code: 1 });
        short.log = Some("begin a1\n".into());
        short.output = None;
        let found = kinds(judge(&plan(End::Exit(1)), Some(&seen("Failed", vec![short])), &outside(&["a1"]), &Record::default()));
        assert_eq!(found, [Broken::WrongEnd, Broken::Incomplete, Broken::Incomplete]);
    }

    #[test]
    fn nothing_comes_after_the_end() {
        let mut after = seen("Completed", vec![tried(1, Cause::Completed)]);
        after.timeline.push((4, "x.NotResponding".into(), json!({})));
        assert_eq!(kinds(judge(&plan(End::Exit(0)), Some(&after), &outside(&["a1"]), &Record::default())), [Broken::History]);
    }
}
