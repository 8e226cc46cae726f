//! The note in an attempt's folder that containers were (about to be) made for it: by it an agent that comes after, a fence, or the removal of the
//! folder finds and ends them. A container of Docker is nobody's child here; one of Podman outlives a killed agent.

use std::{
    fs, io,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::client::{Client, Kind};
use crate::trust::{Access, replace_file};

const FILE: &str = "container.json";

/// How long the removal may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks whether the engine's client has ended.
const LOOK: Duration = Duration::from_millis(10);

/// Which containers an attempt may have, and whom to ask about them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    /// The engine.
    pub(crate) client: Client,
    /// Their names.
    pub(crate) names: Vec<String>,
}

impl Note {
    /// Writes the note, durably, before the first container is made.
    pub(crate) fn write(&self, folder: &Path) -> io::Result<()> {
        replace_file(&folder.join(FILE), &serde_json::to_vec(self)?, Access::Owner).map_err(io::Error::other)
    }

    fn read(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(folder.join(FILE)).ok()?).ok()
    }
}

/// Ends and removes every container of the attempt with this folder. Blocks for a moment if it has a note, else not at all. A failure is in the log:
/// the engine may be gone.
pub(crate) fn remove_leftovers(folder: &Path) {
    let Some(Note { client, names }) = Note::read(folder) else { return };
    let removed = match client.remove_words(&names) {
        None => Ok(()),
        Some(words) => {
            let mut command = Command::new(&client.program);
            command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command.spawn().and_then(|child| ended(child, client.kind, Instant::now() + PATIENCE))
        }
    };
    match removed {
        Ok(()) => {
            if let Err(error) = fs::remove_file(folder.join(FILE)) {
                tracing::info!(%error, "the note about containers stays");
            }
        }
        Err(error) => tracing::error!(%error, folder = %folder.display(), "containers of the attempt are not removed"),
    }
}

fn ended(mut child: Child, kind: Kind, deadline: Instant) -> io::Result<()> {
    loop {
        if let Some(status) = child.try_wait()? {
            // Older releases of Docker call a container that is not there a failure; what matters is that nothing is left.
            let is_fine = status.success() || (kind == Kind::Docker && status.code() == Some(1));
            return if is_fine { Ok(()) } else { Err(io::Error::other(status.to_string())) };
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(LOOK);
    }
}
