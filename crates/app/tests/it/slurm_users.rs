//! Runs whose jobs are those of another account, on a real cluster, through the real `sudo` and the real agent. It takes root to be somebody else without
//! anything in sudoers; elsewhere the tests say by name that they are skipped.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::PathBuf,
    process::Command,
};

use reqwest::StatusCode;

use crate::{
    slurm::{Cluster, Kind, ends, names},
    support::{TestServer, definition, form, until, zip},
};

/// An account that every Debian has.
const USER: &str = "games";

/// The application that a new server has.
const APP: &str = "default";

/// Runs until it is stopped.
const LONG: &str = "import time\nprint('running', flush=True)\ntime.sleep(600)\n";

struct Lab {
    cluster: Cluster,
    home: PathBuf,
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

impl Lab {
    fn find(test: &str) -> Option<Self> {
        let why = if output("id", &["-u"]).as_deref() != Some("0") {
            "it takes root to be another account"
        } else if output("sudo", &["-n", "-u", USER, "true"]).is_none() {
            "sudo is not installed, or there is no account `games`"
        } else {
            let cluster = Cluster::find(test, Kind::Plain)?;
            let home = cluster.shared().join("homes").join(USER);
            fs::create_dir_all(&home).unwrap();
            fs::set_permissions(cluster.shared(), fs::Permissions::from_mode(0o711)).unwrap();
            chown(&home, output("id", &["-u", USER]).unwrap().parse().ok(), None).unwrap();
            return Some(Self { cluster, home });
        };
        eprintln!("SKIPPED {test}: {why}");
        None
    }

    /// A server whose application `app` is the account `user`.
    async fn server(&self, app: &str, user: &str) -> TestServer {
        let homes = self.cluster.shared().join("homes");
        let more = format!("retries = 0\nuser_dir = \"{}/$USER\"\n[compute.cpu-cluster.submit_as]\n{app} = \"{user}\"", homes.display());
        self.cluster.server(&more).await
    }

    fn left(&self) -> Vec<String> {
        let shared = self.cluster.shared();
        let places = [shared.join("attempts"), shared.join("notes"), shared.join("claims"), self.home.join("attempts")];
        places.iter().flat_map(|place| names(place)).collect()
    }

    async fn swept(&self) {
        until("everything of the attempt to be swept", || async { self.left().is_empty().then_some(()) }).await;
    }

    async fn id(&self) -> String {
        self.cluster.job("R").await.0
    }
}

#[tokio::test]
async fn a_run_is_a_job_of_its_account_and_goes_on_while_the_server_is_started_again() {
    let Some(lab) = Lab::find("a_run_is_a_job_of_its_account") else { return };
    let mut server = lab.server(APP, USER).await;
    let shared = lab.cluster.shared().display().to_string();
    let script = format!(
        "import getpass, os, pathlib, time\nprint('i am', getpass.getuser(), os.geteuid(), flush=True)\n\
         for name in ['attempts', 'notes', 'claims', 'server.lock']:\n\
         \x20   try:\n\
         \x20       path = pathlib.Path('{shared}', name)\n\
         \x20       list(path.iterdir()) if path.is_dir() else open(path, 'w')\n\
         \x20       print('saw', name, flush=True)\n\
         \x20   except PermissionError:\n\
         \x20       print('hidden', name, flush=True)\n\
         pathlib.Path('outputs/model.txt').write_text('kept')\n\
         while not os.path.exists('{shared}/release'): time.sleep(0.1)\n\
         print('released')\n"
    );
    let run = server.submit(&script, |_| {}).await;
    server.wait_for_output(&run, "hidden server.lock").await;
    let id = lab.id().await;
    assert_eq!(output(lab.cluster_bin("squeue").to_str().unwrap(), &["-h", "-j", &id, "-o", "%u"]).as_deref(), Some(USER));
    let attempt = names(&lab.home.join("attempts")).remove(0);
    let folder = lab.home.join("attempts").join(&attempt);
    let metadata = fs::metadata(folder.join("order.json")).unwrap();
    assert_eq!((metadata.uid().to_string(), metadata.mode() & 0o777), (output("id", &["-u", USER]).unwrap(), 0o600));
    let order = lab.cluster.shared().join("attempts").join(&attempt).join("order.json");
    assert_eq!(output("sudo", &["-n", "-u", "nobody", "cat", order.to_str().unwrap()]), None, "it is the server's alone");
    server.kill();
    fs::write(lab.cluster.shared().join("release"), "").unwrap();
    server.start_again().await;
    server.wait_for(&run, "Completed").await;
    let log = server.driver_log(&run).await;
    assert!(log.contains(&format!("i am {USER}")) && log.contains("released") && !log.contains("saw"), "{log}");
    let url = server.client().native(&format!("/runs/{run}/attempts"));
    assert_eq!(server.get(&url).await.as_array().unwrap().len(), 1);
    let shown = server.cli(&["show", &run]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains(&format!("its jobs are those of account {USER}")));
    let outputs = server.cli(&["download", &run, "--output", server.dir().join("out").to_str().unwrap()]);
    assert!(outputs.status.success() && server.files("out").iter().any(|file| file.ends_with("outputs/model.txt")));
    lab.swept().await;
}

impl Lab {
    fn cluster_bin(&self, name: &str) -> PathBuf {
        PathBuf::from(std::env::var_os("TRAINYARD_TEST_SLURM").unwrap()).join("bin").join(name)
    }
}

#[tokio::test]
async fn a_job_of_an_account_is_cancelled_by_its_run_and_by_scancel() {
    let Some(lab) = Lab::find("a_job_of_an_account_is_cancelled") else { return };
    let server = lab.server(APP, USER).await;
    let run = server.submit(LONG, |_| {}).await;
    server.wait_for_output(&run, "running").await;
    assert!(server.cli(&["cancel", &run]).status.success());
    ends(&server, &run, "Cancelled").await;
    lab.swept().await;
    let run = server.submit(LONG, |_| {}).await;
    server.wait_for_output(&run, "running").await;
    let id = lab.id().await;
    let as_user = ["-n", "-u", USER, "--", lab.cluster_bin("scancel").to_str().unwrap(), &id].map(str::to_owned);
    assert!(output("sudo", &as_user.each_ref().map(String::as_str)).is_some());
    ends(&server, &run, "Cancelled").await;
}

#[tokio::test]
async fn an_agent_of_an_account_that_is_killed_is_told_by_slurm() {
    let Some(lab) = Lab::find("an_agent_of_an_account_that_is_killed") else { return };
    let server = lab.server(APP, USER).await;
    let run = server.submit(LONG, |_| {}).await;
    server.wait_for_output(&run, "running").await;
    let attempt = names(&lab.home.join("attempts")).remove(0);
    for pid in crate::support::processes_with(&format!("attempts/{attempt}")) {
        crate::support::signal(pid, "KILL");
    }
    let (_, message) = ends(&server, &run, "Failed").await;
    assert!(message.contains("Slurm job") && message.contains("FAILED"), "{message}");
    assert!(server.driver_log(&run).await.contains("running"), "what had arrived is kept");
}

#[tokio::test]
async fn a_folder_that_the_account_cannot_make_is_shown_with_the_jobs_last_words() {
    let Some(lab) = Lab::find("a_folder_that_the_account_cannot_make") else { return };
    chown(&lab.home, Some(0), None).unwrap();
    let server = lab.server(APP, USER).await;
    let run = server.submit(LONG, |_| {}).await;
    let (_, message) = ends(&server, &run, "Failed").await;
    assert!(message.contains("its log ends with") && message.contains("ermission denied"), "{message}");
}

#[tokio::test]
async fn who_has_no_account_and_what_sudo_refuses_is_refused_at_submission() {
    let Some(lab) = Lab::find("who_has_no_account_is_refused") else { return };
    let cases = [
        ("somebody-else", USER, format!("the key `{APP}`")),
        (APP, "nobody-of-that-name", "sudo does not let the server submit as `nobody-of-that-name`".to_owned()),
    ];
    for (app, user, words) in cases {
        let server = lab.server(app, user).await;
        let (status, answer) = server.start_run("", form(&definition(), &zip(&[("hello.py", LONG)]))).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
        assert!(answer.to_string().contains(&words), "{answer}");
        drop(server);
    }
    assert!(lab.left().is_empty());
}

#[tokio::test]
async fn a_run_on_two_nodes_has_both_agents_on_the_account_and_leaves_nothing() {
    let Some(lab) = Lab::find("a_run_on_two_nodes_has_both_agents_on_the_account") else { return };
    let server = lab.server(APP, USER).await;
    let script = "import getpass, os\nprint('i am', getpass.getuser(), 'rank', os.environ['RANK'], 'of', os.environ['WORLD_SIZE'])\n";
    let two = |configuration: &mut serde_json::Value| {
        configuration["NodeCount"] = 2.into();
        configuration["Framework"] = "PyTorch".into();
        configuration["Communicator"] = "Gloo".into();
        configuration["PyTorch"] = serde_json::json!({ "CommunicationBackend": "gloo", "ProcessCount": 2 });
    };
    let run = server.submit(script, two).await;
    server.wait_for(&run, "Completed").await;
    until("both folders on the account to be removed", || async { names(&lab.home.join("attempts")).is_empty().then_some(()) }).await;
    let url = server.client().native(&format!("/runs/{run}/attempts"));
    assert_eq!(server.get(&url).await[0]["nodes"].as_array().map(Vec::len), Some(2));
}
