//! What reaches an agent on a machine that shares no folder with the server: an order that is put beside it, and put anew.
//!
//! The engine keeps a folder up to date that the agent can only read (a mounted Secret). Everything else in the agent looks into the attempt's own
//! folder, so what is new is carried over there, by a thread of its own: nothing else has to know.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::Duration,
};

use trainyard_core::{Error, Result};
use trainyard_wire::native::AttemptOrder;

use super::folder::AttemptFolder;

/// The variable that leads an agent to its notes where a command line would show the place to others.
pub const VARIABLE: &str = "TRAINYARD_NOTES";

/// The order.
pub(crate) const ORDER: &str = "order.json";
/// A word that changes when everything is to be delivered again.
pub(crate) const AGAIN: &str = "again";

/// How often it is looked for something new. The engine takes about a minute to bring it.
const INTERVAL: Duration = Duration::from_secs(2);

/// What was last carried over.
#[derive(Default)]
struct Carried {
    order: Vec<u8>,
    again: Vec<u8>,
    /// The folder of the user, if the server knows no other place for environments.
    own: Option<PathBuf>,
}

/// Has `agent` live in `attempt_dir` with what is in `notes`: again, as long as the server wants everything again. Nobody else would start it.
///
/// `own` is a folder of the user whose agent this is, where the engine has none: environments are kept there, and what is done with is removed, which
/// nobody else can.
///
/// # Errors
/// If there is no order, or it cannot be written.
pub fn live_with(attempt_dir: &Path, notes: &Path, own: Option<&Path>, agent: impl Fn() -> ExitCode) -> Result<ExitCode> {
    take(attempt_dir, notes, own)?;
    loop {
        let end = agent();
        if end != ExitCode::SUCCESS || !AttemptFolder::new(attempt_dir).is_asked_again() {
            if end == ExitCode::SUCCESS && own.is_some() {
                remove(attempt_dir);
            }
            return Ok(end);
        }
    }
}

/// Carries the order from `notes` into the folder of the attempt, and from then on whatever is new.
fn take(attempt_dir: &Path, notes: &Path, own: Option<&Path>) -> Result<()> {
    let folder = AttemptFolder::new(attempt_dir);
    let about = |what: &str| {
        let what = format!("{what} (notes in {})", notes.display());
        move |error: io::Error| Error::invalid(what).with_source(error)
    };
    folder.create().map_err(about("the folder of the attempt cannot be made"))?;
    let mut carried = Carried { again: read(notes, AGAIN).unwrap_or_default(), own: own.map(Path::to_owned), ..Carried::default() };
    let order = fs::read(notes.join(ORDER)).map_err(about("the order of the attempt cannot be read"))?;
    carried.order(&folder, order).map_err(about("the order of the attempt cannot be carried over"))?;
    let notes = notes.to_owned();
    let named = thread::Builder::new().name("notes".into());
    named.spawn(move || carried.follow(&folder, &notes)).map_err(|error| Error::internal("no thread for the notes").with_source(error))?;
    Ok(())
}

impl Carried {
    fn follow(mut self, folder: &AttemptFolder, notes: &Path) {
        loop {
            thread::sleep(INTERVAL);
            self.look(folder, notes);
        }
    }

    fn look(&mut self, folder: &AttemptFolder, notes: &Path) {
        if let Some(order) = read(notes, ORDER)
            && order != self.order
        {
            match self.order(folder, order) {
                Ok(()) => tracing::info!("a new order has come"),
                Err(error) => tracing::warn!(%error, "a new order cannot be carried over; trying again"),
            }
        }
        if let Some(again) = read(notes, AGAIN)
            && again != self.again
        {
            match folder.ask_again() {
                Ok(()) => self.again = again,
                Err(error) => tracing::warn!(%error, "the wish for everything again cannot be carried over; trying again"),
            }
        }
    }

    fn order(&mut self, folder: &AttemptFolder, bytes: Vec<u8>) -> io::Result<()> {
        let mut order: AttemptOrder = serde_json::from_slice(&bytes)?;
        if let (Some(own), Some(settings)) = (&self.own, order.environments.as_object_mut()) {
            for (key, folder) in [("cache_dir", "environments"), ("tools_dir", "tools")] {
                settings.insert(key.into(), serde_json::to_value(own.join(folder))?);
            }
        }
        folder.write_order(&order)?;
        self.order = bytes;
        Ok(())
    }
}

/// Removes the folder of an attempt that is done with, unless the agent of another node is at work in it: then that one does.
fn remove(attempt_dir: &Path) {
    if AttemptFolder::new(attempt_dir).nodes().iter().any(AttemptFolder::agent_is_alive) {
        return;
    }
    match fs::remove_dir_all(attempt_dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(folder = %attempt_dir.display(), %error, "the folder of the attempt cannot be removed");
        }
        _ => {}
    }
}

/// `None`: not there, or just being replaced.
fn read(notes: &Path, name: &str) -> Option<Vec<u8>> {
    fs::read(notes.join(name)).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn order(endpoint: &str) -> Vec<u8> {
        let order = json!({
            "protocol": 1, "attempt": uuid::Uuid::nil(), "run_id": "run", "endpoint": endpoint, "ca_pem": "", "token": "", "token_expires_on": 0,
            "definition": null, "snapshot_sha256": null, "environments": null, "archive_limits": null, "grace_seconds": 1, "variables": {},
        });
        serde_json::to_vec(&order).unwrap()
    }

    #[test]
    fn an_order_is_carried_over_and_so_is_a_new_one() {
        let (notes, attempt) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let folder = AttemptFolder::new(attempt.path().join("one"));
        let error = take(folder.path(), notes.path(), None).unwrap_err();
        assert!(error.message().contains("the order of the attempt cannot be read"), "{error}");
        fs::write(notes.path().join(ORDER), order("https://a")).unwrap();
        take(folder.path(), notes.path(), None).unwrap();
        assert_eq!(folder.read_order().unwrap().endpoint, "https://a");

        let mut carried = Carried { order: order("https://a"), ..Carried::default() };
        fs::write(notes.path().join(ORDER), "half an or").unwrap();
        carried.look(&folder, notes.path());
        assert_eq!(folder.read_order().unwrap().endpoint, "https://a", "what cannot be read changes nothing");
        fs::write(notes.path().join(ORDER), order("https://b")).unwrap();
        carried.look(&folder, notes.path());
        assert_eq!(folder.read_order().unwrap().endpoint, "https://b");
    }

    #[test]
    fn an_agent_that_is_to_deliver_again_lives_again() {
        let (notes, attempt) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let folder = AttemptFolder::new(attempt.path());
        fs::write(notes.path().join(ORDER), order("https://a")).unwrap();
        let lives = std::cell::Cell::new(0);
        let agent = || {
            lives.set(lives.get() + 1);
            if lives.get() == 1 {
                folder.ask_again().unwrap();
            } else {
                folder.answer_again().unwrap();
            }
            ExitCode::SUCCESS
        };
        assert_eq!(live_with(folder.path(), notes.path(), None, agent).unwrap(), ExitCode::SUCCESS);
        assert_eq!(lives.get(), 2);
    }

    #[test]
    fn what_is_wanted_again_is_wanted_once_for_each_word() {
        let (notes, attempt) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let folder = AttemptFolder::new(attempt.path());
        let mut carried = Carried::default();
        fs::write(notes.path().join(AGAIN), "1").unwrap();
        carried.look(&folder, notes.path());
        assert!(folder.is_asked_again());
        folder.answer_again().unwrap();
        carried.look(&folder, notes.path());
        assert!(!folder.is_asked_again());
        fs::write(notes.path().join(AGAIN), "2").unwrap();
        carried.look(&folder, notes.path());
        assert!(folder.is_asked_again());
    }
}
