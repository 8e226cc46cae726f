use std::{os::unix::fs::symlink, process::Command};

use serde_json::json;

use super::*;

struct Shared {
    dir: tempfile::TempDir,
    guests: Guests,
}

fn shared() -> Shared {
    let dir = tempfile::tempdir().unwrap();
    let guests = Guests::find(dir.path(), &dir.path().join("attempts"));
    guests.open(dir.path(), &dir.path().join("bin")).unwrap();
    Shared { dir, guests }
}

fn order(attempt: Uuid) -> AttemptOrder {
    serde_json::from_value(json!({
        "protocol": 1, "attempt": attempt, "run_id": "run", "endpoint": "https://a", "ca_pem": "", "token": "t0ken", "token_expires_on": 0,
        "definition": null, "snapshot_sha256": null, "environments": null, "archive_limits": null, "grace_seconds": 1, "variables": {},
    }))
    .unwrap()
}

impl Shared {
    fn admit(&self, nodes: u32) -> (AttemptId, Arc<Guest>) {
        let order = order(Uuid::new_v4());
        let folder = AttemptFolder::new(self.dir.path().join("attempts").join(order.attempt.to_string()));
        folder.create().unwrap();
        let guest = self.guests.admit(&folder, &order, (&ClusterUser::new("alice").unwrap(), nodes)).unwrap();
        (AttemptId(order.attempt), guest)
    }

    /// Runs the script of an attempt as Slurm would: through a file. The agent is `/bin/echo`.
    fn run(&self, (attempt, guest): (AttemptId, &Guest), job: &str) -> (Option<i32>, String) {
        let own = UserDir("$HOME/own".into());
        let path = self.dir.path().join("script");
        fs::write(&path, self.guests.script(guest, attempt, (Path::new("/bin/echo"), &own))).unwrap();
        let status = Command::new("sh").arg(&path).env("SLURM_JOB_ID", job).env("HOME", self.dir.path()).status().unwrap();
        let log = fs::read_to_string(self.guests.claims_of(guest).join(JOB_LOG)).unwrap();
        (status.code(), log.lines().last().unwrap_or_default().to_owned())
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn users_get_through_to_what_they_know_the_name_of_and_see_no_names() {
    let shared = shared();
    let (_, guest) = shared.admit(1);
    let (notes, claims) = (shared.guests.notes_of(&guest), shared.guests.claims_of(&guest));
    for (path, wanted) in [
        (notes.parent().unwrap(), 0o711),
        (claims.parent().unwrap(), 0o711),
        (&*notes, 0o711),
        (&*claims, 0o1733),
        (&*notes.join(notes::ORDER), 0o644),
        (&*shared.dir.path().join("attempts"), 0o700),
    ] {
        assert_eq!(mode(path), wanted, "{}", path.display());
    }
    assert!(guest.notes.len() == 64 && guest.notes != guest.claims && guest.notes != shared.admit(1).1.notes);
}

#[test]
fn of_two_jobs_with_one_name_one_begins_and_one_that_is_put_back_finds_its_folder_or_leaves() {
    let shared = shared();
    let (attempt, guest) = shared.admit(1);
    assert!(!shared.guests.has_begun(&guest) && shared.guests.claimed(&guest).is_none());
    let own = shared.dir.path().join("own");
    let started = format!("agent --attempt-dir {0}/attempts/{attempt} --user-dir {0}", own.display());
    assert_eq!(shared.run((attempt, &guest), "17"), (Some(0), started.clone()));
    assert_eq!(shared.guests.claimed(&guest), Some(17));
    assert_eq!(shared.run((attempt, &guest), "18"), (Some(0), "job 17 has this attempt".into()));
    let (code, words) = shared.run((attempt, &guest), "17");
    assert_eq!(code, Some(BEGUN_BEFORE));
    assert!(words.contains("not on this node"), "{words}");
    fs::create_dir_all(own.join(format!("attempts/{attempt}"))).unwrap();
    fs::write(own.join(format!("attempts/{attempt}/agent.lock")), "").unwrap();
    assert_eq!(shared.run((attempt, &guest), "17"), (Some(0), started));
}

#[test]
fn the_script_has_its_keys_in_no_argument_of_a_process() {
    let shared = shared();
    for nodes in [1, 3] {
        let (attempt, guest) = shared.admit(nodes);
        let script = shared.guests.script(&guest, attempt, (Path::new("/bin/x"), &UserDir::default()));
        let holds = |line: &&str| line.contains(&guest.notes) || line.contains(&guest.claims);
        let lines: Vec<&str> = script.lines().filter(holds).collect();
        assert!(lines.iter().all(|line| line.starts_with("claims='/") || line.starts_with("TRAINYARD_NOTES='/")), "{lines:?}");
        assert_eq!(lines.len(), 2);
        assert!(nodes == 1 || script.contains("--attempt-dir \"$1\" --user-dir \"$2\" --node"), "{script}");
        assert!(!script.contains("t0ken"));
    }
}

#[test]
fn what_a_user_puts_where_the_server_reads_leads_it_nowhere() {
    let shared = shared();
    let (attempt, guest) = shared.admit(1);
    let claims = shared.guests.claims_of(&guest);
    let secret = shared.dir.path().join("secret");
    fs::write(&secret, "17").unwrap();
    symlink(&secret, claims.join(CLAIM)).unwrap();
    fs::hard_link(&secret, claims.join(JOB_LOG)).unwrap();
    assert_eq!((shared.guests.claimed(&guest), shared.guests.log(&guest)), (None, Vec::new()));
    for name in [CLAIM, JOB_LOG] {
        fs::remove_file(claims.join(name)).unwrap();
        // Opened as a file it would wait for somebody who writes.
        rustix::fs::mknodat(rustix::fs::CWD, claims.join(name), rustix::fs::FileType::Fifo, 0o644.into(), 0).unwrap();
    }
    assert_eq!((shared.guests.claimed(&guest), shared.guests.log(&guest)), (None, Vec::new()));
    fs::remove_file(claims.join(JOB_LOG)).unwrap();
    fs::write(claims.join(JOB_LOG), format!("{}\x1b[2J\nthe end", "x".repeat(1 << 20))).unwrap();
    let log = String::from_utf8(shared.guests.log(&guest)).unwrap();
    assert!(log.len() as u64 <= LOG_BYTES && log.ends_with(" [2J\nthe end"), "{}", log.len());
    // A folder of theirs with something in it is left alone.
    fs::create_dir(claims.join("mine")).unwrap();
    fs::write(claims.join("mine/file"), "").unwrap();
    shared.guests.dismiss(attempt).unwrap();
    assert!(claims.join("mine/file").exists() && !shared.guests.notes_of(&guest).exists() && secret.exists());
    assert!(shared.guests.of(attempt).is_none());
}

#[test]
fn a_new_server_knows_the_guests_of_the_old_one_and_the_same_places() {
    let shared = shared();
    let (attempt, guest) = shared.admit(1);
    let later = Guests::find(shared.dir.path(), &shared.dir.path().join("attempts"));
    assert_eq!(later.of(attempt).unwrap().notes, guest.notes);
    assert_eq!(later.users(), std::slice::from_ref(&guest.user));
    let folder = AttemptFolder::new(shared.dir.path().join("attempts").join(attempt.to_string()));
    let again = later.admit(&folder, &order(attempt.0), (&guest.user, 1)).unwrap();
    assert_eq!(again.claims, guest.claims, "handed in again, it has the same claim");
    later.withdraw(&guest).unwrap();
    later.withdraw(&guest).unwrap();
    later.dismiss(attempt).unwrap();
    assert!(!later.claims_of(&guest).exists());
}

#[test]
fn a_folder_of_users_is_a_path_that_no_shell_takes_for_more() {
    for fine in ["$HOME/.trainyard", "/scratch/$USER/runs", "/scratch/a-b_c.d"] {
        assert!(UserDir::new(fine).is_ok(), "{fine}");
    }
    for bad in ["", "relative", "$USER/x", "/x/$(id)", "/x/`id`", "/x y", "/x\"", "/x/../y", "$OTHER/x", "/x;y"] {
        assert!(UserDir::new(bad).is_err(), "{bad}");
    }
}
