//! GPUs of this machine: which there are, which target may give which of them away, and which attempt has which.
//!
//! Who has what stands in the order of each attempt, in its folder, and nowhere else: a server that was killed finds the same answer
//! as one that was not. Invariant: while an attempt may still run code, no other attempt is given one of its GPUs.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read as _,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use trainyard_core::{Error, ErrorKind, Result};
use trainyard_wire::native::AttemptOrder;

use super::nodes_of;

/// The variable that CUDA reads; the assignment of an attempt is its value in the order.
const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";
/// Numbers mean the same to CUDA and to `nvidia-smi` only in this order.
const ORDER: (&str, &str) = ("CUDA_DEVICE_ORDER", "PCI_BUS_ID");
/// Longest time that `nvidia-smi` may take: a driver that hangs must not keep the server from starting.
const PATIENCE: Duration = Duration::from_secs(20);

/// A GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Its number, in the order of the PCI bus.
    pub index: u32,
    /// E.g. `NVIDIA A100-SXM4-80GB`.
    pub name: String,
    /// In MiB; 0 where the driver does not say.
    pub memory_mib: u64,
}

/// What a target may give to its runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuRule {
    /// The numbers of the GPUs that the target may use.
    pub devices: Vec<u32>,
    /// How many each run gets; at least 1.
    pub per_run: u32,
}

/// The GPUs that targets give away.
#[derive(Clone, Debug, Default)]
pub struct Gpus {
    targets: BTreeMap<String, GpuRule>,
}

/// Asks `nvidia-smi` (the first on PATH) which GPUs there are.
///
/// # Errors
/// [`Unavailable`](ErrorKind::Unavailable) with the reason when it is not there, does not answer or fails.
pub fn discover() -> Result<Vec<Gpu>> {
    discover_with(Path::new("nvidia-smi"))
}

fn discover_with(program: &Path) -> Result<Vec<Gpu>> {
    let unavailable = |why: String| Error::new(ErrorKind::Unavailable, format!("the GPUs of this machine are unknown: {why}"));
    let mut command = Command::new(program);
    command.args(["--query-gpu=index,name,memory.total", "--format=csv,noheader,nounits"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(|error| {
        unavailable(format!(
            "`{}` cannot be started ({error}); is the NVIDIA driver installed, and the program on PATH?",
            program.display()
        ))
    })?;
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        match child.try_wait().map_err(|error| unavailable(error.to_string()))? {
            Some(status) => break status,
            None if Instant::now() > deadline => {
                // It hangs in the driver; whether the kill is heard is not waited for.
                let _ = child.kill();
                return Err(unavailable(format!("nvidia-smi gave no answer within {} s", PATIENCE.as_secs())));
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    let mut answer = String::new();
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let read = stdout.map_or(Ok(0), |mut stdout| stdout.read_to_string(&mut answer));
    read.map_err(|error| unavailable(format!("the answer of nvidia-smi cannot be read: {error}")))?;
    if !status.success() {
        let mut words = String::new();
        let _ = stderr.map(|mut stderr| stderr.read_to_string(&mut words));
        let words = [answer.trim(), words.trim()].join(" ");
        return Err(unavailable(format!("nvidia-smi ended with {status}: {}", words.trim())));
    }
    parse(&answer).map_err(unavailable)
}

/// Reads lines such as `0, NVIDIA A100-SXM4-80GB, 81920`.
fn parse(answer: &str) -> Result<Vec<Gpu>, String> {
    let line = |line: &str| {
        let mut parts = line.split(',').map(str::trim);
        let index = parts.next().and_then(|index| index.parse().ok()).ok_or_else(|| format!("nvidia-smi said `{line}`"))?;
        let name = parts.next().unwrap_or_default().to_owned();
        // `[N/A]` on devices that share the machine's memory.
        let memory_mib = parts.next().and_then(|memory| memory.parse().ok()).unwrap_or(0);
        Ok(Gpu { index, name, memory_mib })
    };
    answer.lines().filter(|text| !text.trim().is_empty()).map(line).collect()
}

impl Gpus {
    /// What each target gives to its runs; a target that is not named gives none.
    pub fn new(targets: BTreeMap<String, GpuRule>) -> Self {
        Self { targets }
    }

    /// Whether any target gives GPUs away.
    pub(super) fn are_given_away(&self) -> bool {
        !self.targets.is_empty()
    }

    /// Writes into `order` which GPUs the attempt has. `former`: its own order, if there is one already; `others`: the orders of every other
    /// attempt that may still run code. Where no target gives GPUs away nothing is said, and code sees what the server sees.
    ///
    /// # Errors
    /// [`Unavailable`](ErrorKind::Unavailable) while too few are free.
    pub fn assign(&self, order: &mut AttemptOrder, former: Option<&AttemptOrder>, others: &[AttemptOrder]) -> Result<()> {
        if !self.are_given_away() {
            return Ok(());
        }
        let target = order.definition["target"].as_str().unwrap_or_default();
        let devices = match (self.targets.get(target), former.and_then(|former| former.variables.get(VISIBLE))) {
            (_, Some(devices)) => devices.clone(),
            // The GPUs belong to other targets.
            (None, None) => String::new(),
            // All of its nodes are on this machine, and each takes its part.
            (Some(rule), None) => rule.choose(nodes_of(order), &taken(others))?,
        };
        order.variables.insert(VISIBLE.into(), devices);
        order.variables.insert(ORDER.0.into(), ORDER.1.into());
        Ok(())
    }
}

impl GpuRule {
    /// How many runs can have their GPUs at once.
    pub fn slots(&self) -> u32 {
        u32::try_from(self.devices.len()).unwrap_or(u32::MAX) / self.per_run.max(1)
    }

    fn choose(&self, nodes: u32, taken: &BTreeSet<u32>) -> Result<String> {
        let free: Vec<String> = self.devices.iter().filter(|device| !taken.contains(device)).map(ToString::to_string).collect();
        let wanted = self.per_run.saturating_mul(nodes) as usize;
        if free.len() < wanted {
            let message = format!("{wanted} GPUs are wanted, and of {} only {} are free", self.devices.len(), free.len());
            return Err(Error::new(ErrorKind::Unavailable, message));
        }
        Ok(free[..wanted].join(","))
    }
}

fn taken(orders: &[AttemptOrder]) -> BTreeSet<u32> {
    let lists = orders.iter().filter_map(|order| order.variables.get(VISIBLE));
    lists.flat_map(|list| list.split(',')).filter_map(|device| device.trim().parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn order(target: &str) -> AttemptOrder {
        let document = json!({
            "protocol": 1, "attempt": uuid::Uuid::nil(), "run_id": "r", "endpoint": "https://localhost", "ca_pem": "", "token": "t",
            "token_expires_on": 0, "definition": { "target": target }, "snapshot_sha256": null, "environments": {}, "archive_limits": {},
            "variables": {}, "grace_seconds": 1
        });
        serde_json::from_value(document).unwrap()
    }

    fn gpus(per_run: u32) -> Gpus {
        Gpus::new([("gpu".to_owned(), GpuRule { devices: vec![0, 1, 2, 3], per_run })].into())
    }

    fn assigned(gpus: &Gpus, target: &str, others: &[AttemptOrder]) -> Result<AttemptOrder> {
        let mut order = order(target);
        gpus.assign(&mut order, None, others).map(|()| order)
    }

    /// A program that answers like `nvidia-smi`.
    fn scripted(text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nvidia-smi");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        (dir, path)
    }

    #[test]
    fn gpus_are_found_with_their_names_and_memory() {
        let (_dir, path) = scripted("echo '0, NVIDIA A100-SXM4-80GB, 81920'; echo '1, NVIDIA GB10, [N/A]'");
        let found = discover_with(&path).unwrap();
        let expected = [
            Gpu { index: 0, name: "NVIDIA A100-SXM4-80GB".into(), memory_mib: 81920 },
            Gpu { index: 1, name: "NVIDIA GB10".into(), memory_mib: 0 },
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_driver_that_does_not_work_is_told_with_its_own_words() {
        let (_dir, path) = scripted("echo \"NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\"; exit 9");
        let error = discover_with(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.message().contains("couldn't communicate") && error.message().contains("9"), "{error}");
        let error = discover_with(Path::new("/nonexistent/nvidia-smi")).unwrap_err();
        assert!(error.message().contains("is the NVIDIA driver installed"), "{error}");
    }

    #[test]
    fn every_attempt_has_gpus_of_its_own_and_one_that_waits_is_told_how_many_are_free() {
        let gpus = gpus(2);
        let first = assigned(&gpus, "gpu", &[]).unwrap();
        let second = assigned(&gpus, "gpu", std::slice::from_ref(&first)).unwrap();
        assert_eq!((first.variables[VISIBLE].as_str(), second.variables[VISIBLE].as_str()), ("0,1", "2,3"));
        assert_eq!(first.variables["CUDA_DEVICE_ORDER"], "PCI_BUS_ID");
        let error = assigned(&gpus, "gpu", &[first, second]).map(drop).unwrap_err();
        assert_eq!(error.message(), "2 GPUs are wanted, and of 4 only 0 are free");
    }

    #[test]
    fn an_attempt_keeps_its_gpus_when_its_order_is_written_again() {
        let gpus = gpus(1);
        let (former, mut again) = (assigned(&gpus, "gpu", &[]).unwrap(), order("gpu"));
        let other = assigned(&gpus, "gpu", std::slice::from_ref(&former)).unwrap();
        gpus.assign(&mut again, Some(&former), &[other]).unwrap();
        assert_eq!(again.variables[VISIBLE], "0");
    }

    #[test]
    fn runs_of_other_targets_see_no_gpu_once_a_target_gives_them_away() {
        assert_eq!(assigned(&gpus(1), "cpu-cluster", &[]).unwrap().variables[VISIBLE], "");
        assert!(assigned(&Gpus::default(), "cpu-cluster", &[]).unwrap().variables.is_empty());
    }

    proptest! {
        #[test]
        fn no_gpu_is_given_away_twice(per_run in 1..4u32, comings in prop::collection::vec(any::<bool>(), 1..20)) {
            let gpus = gpus(per_run);
            let mut live: Vec<AttemptOrder> = Vec::new();
            for comes in comings {
                if !comes {
                    live.pop();
                } else if let Ok(order) = assigned(&gpus, "gpu", &live) {
                    live.push(order);
                }
                let given: Vec<&str> = live.iter().flat_map(|order| order.variables[VISIBLE].split(',')).collect();
                let different: BTreeSet<&&str> = given.iter().collect();
                prop_assert_eq!(given.len(), different.len());
            }
        }
    }
}
