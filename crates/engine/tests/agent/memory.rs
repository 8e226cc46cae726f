//! Code that the kernel kills because memory ran out, in a control group made for the test.

use std::{
    fs,
    path::{Path, PathBuf},
};

use axum::http::StatusCode;
use serde_json::json;

use crate::stage::{Agent, Stage};

const LIMIT_BYTES: u64 = 256 << 20;

/// Takes more memory than there is in the group: the last gigabyte of something without an end.
const GREEDY: &str = "tail -c 1000000000 > /dev/null";

/// A group with little memory. It is removed when dropped, which works once nothing runs in it.
struct Group {
    folder: PathBuf,
}

impl Group {
    /// `None`, with a word about it: this machine does not let us.
    #[expect(clippy::print_stderr, reason = "a skipped test says so by name")]
    fn make(test: &str) -> Option<Self> {
        let made = Self::parents().into_iter().find_map(|parent| {
            let folder = parent.join(format!("trainyard-test-{}-{test}", std::process::id()));
            fs::create_dir(&folder).ok()?;
            let group = Self { folder };
            let limited = ["memory.max", "memory.limit_in_bytes"].iter().any(|name| group.write(name, &LIMIT_BYTES.to_string()));
            // Swap would let it go on; where there is none the files may be missing.
            group.write("memory.swap.max", "0");
            group.write("memory.memsw.limit_in_bytes", &LIMIT_BYTES.to_string());
            limited.then_some(group)
        });
        if made.is_none() {
            eprintln!("SKIPPED: {test}: no memory control group can be made here (needs root or a delegated group)");
        }
        made
    }

    /// Where one may be made: below the group of this process or at the top, of either version.
    fn parents() -> Vec<PathBuf> {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let (one, two) = (Path::new("/sys/fs/cgroup/memory"), Path::new("/sys/fs/cgroup"));
        let mut parents = Vec::new();
        for line in own.lines() {
            let fields: Vec<&str> = line.splitn(3, ':').collect();
            let path = fields[2].trim_start_matches('/');
            if fields[1].split(',').any(|controller| controller == "memory") {
                parents.extend([one.join(path), one.to_owned()]);
            } else if fields[0] == "0" {
                parents.extend([two.join(path), two.to_owned()]);
            }
        }
        parents
    }

    fn write(&self, name: &str, text: &str) -> bool {
        let path = self.folder.join(name);
        path.exists() && fs::write(path, text).is_ok()
    }

    /// Runs an agent to its end inside the group: it is put there before it gets an answer, and so before it starts the code.
    async fn run(&self, stage: &Stage) {
        stage.world.set(|known| known.refuse = Some(StatusCode::SERVICE_UNAVAILABLE));
        let mut agent: Agent = stage.agent();
        assert!(self.write("cgroup.procs", &agent.pid().to_string()));
        stage.world.set(|known| known.refuse = None);
        stage.world.until("the end", |known| known.phases().contains(&"collected")).await;
        assert!(agent.ended().await.success(), "{}", stage.agent_log());
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.folder);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn code_that_takes_more_memory_than_its_group_has_ran_out_of_memory() {
    let Some(group) = Group::make("main") else { return };
    let stage = Stage::new(&format!("mkfifo zeros; cat /dev/zero > zeros & exec {GREEDY} < zeros")).await;
    group.run(&stage).await;
    let cause = stage.world.known().cause();
    assert_eq!(cause["kind"], "out_of_memory", "{cause}");
    let message = cause["message"].as_str().unwrap();
    assert!(
        message.starts_with("the kernel killed one process in the run's control group (") && message.contains("limit 256 MiB"),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn code_that_lost_only_a_worker_keeps_its_own_end_with_a_warning() {
    let Some(group) = Group::make("worker") else { return };
    let stage = Stage::new(&format!("cat /dev/zero | {GREEDY}; echo worker: $?; exit 3")).await;
    group.run(&stage).await;
    let known = stage.world.known();
    assert_eq!(known.cause(), json!({ "kind": "exit_code", "code": 3 }));
    assert!(known.text("azureml-logs/70_driver_log.txt").contains("worker: 137"));
    assert!(known.warnings().iter().any(|warning| warning.contains("for want of memory while the code ran")), "{:?}", known.warnings());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_with_memory_to_spare_is_a_signal() {
    let Some(group) = Group::make("spare") else { return };
    let stage = Stage::new("kill -9 $$").await;
    group.run(&stage).await;
    assert_eq!(stage.world.known().cause(), json!({ "kind": "signal", "signal": 9 }));
    assert_eq!(stage.world.known().warnings(), Vec::<String>::new());
}
