//! Which nodes a partition has and what they are at, asked once for everybody who looks within some seconds.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use trainyard_core::{Error, ErrorKind, Result};

use super::tools::Tools;
use crate::executor::{Machine, MachineState};

/// How long an answer holds.
const HOLDS: Duration = Duration::from_secs(5);

/// How long is waited for Slurm's word.
const PATIENCE: Duration = Duration::from_secs(5);

/// Answers of the last seconds, by partition; `None`: all of the cluster.
type Answers = HashMap<Option<String>, (Instant, Vec<Machine>)>;

/// Asks, and remembers the answers.
#[derive(Debug, Default)]
pub(super) struct Machines(tokio::sync::Mutex<Answers>);

impl Machines {
    /// The nodes of a partition.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] with Slurm's words.
    pub(super) async fn of(&self, tools: &Tools, partition: Option<&str>) -> Result<Vec<Machine>> {
        // Who comes while the question is under way waits for its answer.
        let mut known = self.0.lock().await;
        known.retain(|_, (at, _)| at.elapsed() < HOLDS);
        let key = partition.map(str::to_owned);
        if let Some((_, machines)) = known.get(&key) {
            return Ok(machines.clone());
        }
        let mut arguments = ["--Node", "--noheader", "--format=%N|%T|%E"].map(str::to_owned).to_vec();
        arguments.extend(partition.map(|partition| format!("--partition={partition}")));
        let printed = tools.run("sinfo", &arguments, PATIENCE).await;
        let printed =
            printed.map_err(|failure| Error::new(ErrorKind::Unavailable, format!("Slurm does not tell its nodes: {}", failure.words())))?;
        let machines = parse(&printed.text);
        known.insert(key, (Instant::now(), machines.clone()));
        Ok(machines)
    }
}

/// A node is listed once for each of its partitions.
fn parse(text: &str) -> Vec<Machine> {
    let machine = |line: &str| {
        let (name, rest) = line.split_once('|')?;
        let (state, reason) = rest.split_once('|').unwrap_or((rest, ""));
        let (name, word, reason) = (name.trim(), state.trim(), reason.trim());
        let says = if reason.is_empty() || reason == "none" { word.to_owned() } else { format!("{word}: {reason}") };
        (!name.is_empty()).then(|| (name.to_owned(), Machine { name: name.to_owned(), state: state_of(word), says }))
    };
    text.lines().filter_map(machine).collect::<BTreeMap<_, _>>().into_values().collect()
}

/// `idle`, `mixed`, `down*`, `idle~` and so on (sinfo, NODE STATE CODES): a word, and a sign for what is special about it.
fn state_of(word: &str) -> MachineState {
    let state = word.trim_end_matches(|sign: char| !sign.is_ascii_alphabetic());
    match (state.to_ascii_lowercase().as_str(), word.chars().last()) {
        (_, Some('*')) => MachineState::Unusable,
        (_, Some('#')) | ("powering_up" | "reboot" | "reboot_issued" | "future", _) => MachineState::Preparing,
        (_, Some('%')) | ("draining" | "drng" | "powering_down" | "failing" | "failg", _) => MachineState::Leaving,
        ("mixed" | "mix" | "allocated" | "alloc" | "completing" | "comp" | "blocked", _) => MachineState::Running,
        ("idle" | "planned" | "plnd" | "reserved" | "resv" | "powered_down", _) => MachineState::Idle,
        _ => MachineState::Unusable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_slurm_says_about_nodes_is_understood() {
        let text = "n2|mixed|none\nn1|idle|none\nn1|idle|none\nn3|drained|bad disk\nn4|down*|Not responding\nn5|idle~|none\nn6|allocated#|none\nn7|draining|update\n\n";
        let found: Vec<_> = parse(text).into_iter().map(|machine| (machine.name, machine.state.as_str(), machine.says)).collect();
        let expected = [
            ("n1", "idle", "idle"),
            ("n2", "running", "mixed"),
            ("n3", "unusable", "drained: bad disk"),
            ("n4", "unusable", "down*: Not responding"),
            ("n5", "idle", "idle~"),
            ("n6", "preparing", "allocated#"),
            ("n7", "leaving", "draining: update"),
        ];
        assert_eq!(found, expected.map(|(name, state, says)| (name.to_owned(), state, says.to_owned())));
    }
}
