//! Attempts whose jobs are those of the user who submitted: guests, on the accounts of others.
//!
//! Server and user trust each other with nothing but files that one of them owns and the other reads:
//!
//! * `notes/KEY/` is the server's. The order is in it, for everybody who knows the key: the job's script, which Slurm shows to its owner alone. The
//!   agent carries it over into a folder of the user's, which the server never looks into.
//! * `claims/KEY/` is the server's, and the user may put files into it: who began, and the last words of a job without an agent. What is there
//!   is read without following links, a little of it, and is a number or a text that is shown to the run's own people; nothing else depends on it.
//!
//! Invariant: the server opens nothing for writing, and removes nothing but empty folders and two names, where a user can write.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};
use trainyard_core::{Error, Result, ids::AttemptId, slurm::ClusterUser};
use trainyard_wire::native::AttemptOrder;
use uuid::Uuid;

use super::{ending::JOB_LOG, jobs::CLAIM, submission::io_error, tools::quoted};
use crate::{
    agent::{folder::AttemptFolder, notes},
    trust::{Access, replace_file},
};

/// What the server remembers about a guest, in its own folder of the attempt.
const GUEST: &str = "slurm.guest";

/// The most of a job's log that is looked at, in bytes.
const LOG_BYTES: u64 = 4096;

/// Digits of a number, and a line break.
const CLAIM_BYTES: u64 = 24;

/// The folder of a user for what runs keep there, as the job's shell finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserDir(String);

impl Default for UserDir {
    fn default() -> Self {
        Self("$HOME/.trainyard".into())
    }
}

impl UserDir {
    /// An absolute path, in which `$HOME` and `$USER` stand for those of the account.
    ///
    /// # Errors
    /// [`trainyard_core::ErrorKind::Invalid`] if a shell could take it for something else.
    pub fn new(text: &str) -> Result<Self> {
        let rest = text.replace("$HOME", "/").replace("$USER", "u");
        let plain = |character: char| character.is_ascii_alphanumeric() || matches!(character, '/' | '.' | '_' | '-' | '+' | '@');
        if rest.starts_with('/') && rest.chars().all(plain) && !rest.split('/').any(|part| part == "..") {
            return Ok(Self(text.to_owned()));
        }
        let rule = "an absolute path of letters, digits and any of . _ - + @, in which `$HOME` and `$USER` may stand";
        Err(Error::invalid(format!("`{}` is not possible: expected {rule}", text.escape_debug())))
    }
}

/// An attempt on somebody's account.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Guest {
    pub(super) user: ClusterUser,
    /// On how many nodes.
    pub(super) nodes: u32,
    /// The name of its folder among the notes. Nobody guesses it.
    notes: String,
    /// That among the claims.
    claims: String,
}

/// All guests, and where their folders are.
#[derive(Debug)]
pub(super) struct Guests {
    notes: PathBuf,
    claims: PathBuf,
    known: Mutex<HashMap<AttemptId, Arc<Guest>>>,
}

impl Guests {
    /// Those of which something is left in `attempts`.
    pub(super) fn find(shared: &Path, attempts: &Path) -> Self {
        let guest = |entry: fs::DirEntry| {
            let attempt = entry.file_name().to_str()?.parse().ok()?;
            let text = fs::read(entry.path().join(GUEST)).ok()?;
            Some((attempt, Arc::new(serde_json::from_slice::<Guest>(&text).ok()?)))
        };
        let known = fs::read_dir(attempts).into_iter().flatten().flatten().filter_map(guest).collect();
        Self { notes: shared.join("notes"), claims: shared.join("claims"), known: Mutex::new(known) }
    }

    /// Lets users into the folders that they need, and into nothing else: `shared`, what is in `programs`, and with a key their own.
    pub(super) fn open(&self, shared: &Path, programs: &Path) -> Result<()> {
        let unusable = |path: &Path, error| io_error("users cannot be let into", path, error);
        // Others' attempts have names, too.
        let attempts = &shared.join("attempts");
        for (folder, mode) in [(&**attempts, 0o700), (programs, 0o755), (&self.notes, 0o711), (&self.claims, 0o711)] {
            fs::create_dir_all(folder).map_err(|error| unusable(folder, error))?;
            fs::set_permissions(folder, fs::Permissions::from_mode(mode)).map_err(|error| unusable(folder, error))?;
        }
        let mode = fs::metadata(shared).map_err(|error| unusable(shared, error))?.mode();
        if mode & 0o001 == 0 {
            // It may be open to them by an access list.
            tracing::warn!(folder = %shared.display(), mode = format!("{:o}", mode & 0o7777), "users may not be able to enter the shared folder; `chmod o+x` lets them through, and not look around");
        }
        Ok(())
    }

    pub(super) fn of(&self, attempt: AttemptId) -> Option<Arc<Guest>> {
        self.lock().get(&attempt).cloned()
    }

    pub(super) fn users(&self) -> Vec<ClusterUser> {
        self.lock().values().map(|guest| guest.user.clone()).collect()
    }

    /// Makes the places of an attempt, once, and puts its order there. `folder` is the server's own.
    pub(super) fn admit(&self, folder: &AttemptFolder, order: &AttemptOrder, (user, nodes): (&ClusterUser, u32)) -> Result<Arc<Guest>> {
        let attempt = AttemptId(order.attempt);
        let guest = match self.of(attempt) {
            Some(guest) => guest,
            None => {
                let guest = Guest { user: user.clone(), nodes, notes: key(), claims: key() };
                // Noted first: what is made after it is found and removed.
                let text = serde_json::to_vec(&guest).map_err(Error::internal)?;
                replace_file(&folder.path().join(GUEST), &text, Access::Owner)?;
                let guest = Arc::new(guest);
                self.lock().insert(attempt, Arc::clone(&guest));
                guest
            }
        };
        for (path, mode) in [(self.notes_of(&guest), 0o711), (self.claims_of(&guest), 0o1733)] {
            let made = fs::create_dir_all(&path).and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(mode)));
            made.map_err(|error| io_error("the job cannot be prepared in", &path, error))?;
        }
        self.write_order(&guest, order)?;
        Ok(guest)
    }

    pub(super) fn notes_of(&self, guest: &Guest) -> PathBuf {
        self.notes.join(&guest.notes)
    }

    pub(super) fn claims_of(&self, guest: &Guest) -> PathBuf {
        self.claims.join(&guest.claims)
    }

    /// The order for the agent, which looks for a new one.
    pub(super) fn write_order(&self, guest: &Guest, order: &AttemptOrder) -> Result<()> {
        let text = serde_json::to_vec(order).map_err(Error::internal)?;
        replace_file(&self.notes_of(guest).join(notes::ORDER), &text, Access::Everyone)
    }

    /// A word that the agent has not seen: everything is to be delivered again.
    pub(super) fn ask_again(&self, guest: &Guest) -> Result<()> {
        replace_file(&self.notes_of(guest).join(notes::AGAIN), Uuid::new_v4().to_string().as_bytes(), Access::Everyone)
    }

    /// Without its order no job of the attempt begins.
    pub(super) fn withdraw(&self, guest: &Guest) -> Result<()> {
        let path = self.notes_of(guest);
        gone(fs::remove_dir_all(&path)).map_err(|error| io_error("the order of the attempt cannot be removed from", &path, error))
    }

    /// Removes what there is of an attempt beside its folder. What its user put among the claims is left there, and said.
    pub(super) fn dismiss(&self, attempt: AttemptId) -> Result<()> {
        let Some(guest) = self.of(attempt) else { return Ok(()) };
        self.withdraw(&guest)?;
        let claims = self.claims_of(&guest);
        for name in [CLAIM, JOB_LOG] {
            // Also when it is a folder, which it cannot be unless somebody wants it to.
            let _ = fs::remove_file(claims.join(name));
        }
        if let Err(error) = gone(fs::remove_dir(&claims)) {
            tracing::warn!(%attempt, user = %guest.user, folder = %claims.display(), %error, "a user left something in a folder for claims; it stays");
        }
        self.lock().remove(&attempt);
        Ok(())
    }

    /// The job that says it began.
    pub(super) fn claimed(&self, guest: &Guest) -> Option<u64> {
        let text = read_theirs(&self.claims_of(guest).join(CLAIM), CLAIM_BYTES).ok()?;
        std::str::from_utf8(&text).ok()?.trim().parse().ok()
    }

    /// Whether a job says that it began.
    pub(super) fn has_begun(&self, guest: &Guest) -> bool {
        fs::symlink_metadata(self.claims_of(guest).join(CLAIM)).is_ok()
    }

    /// The end of what its script and its agent said before there was a log for that.
    pub(super) fn log(&self, guest: &Guest) -> Vec<u8> {
        let text = read_theirs(&self.claims_of(guest).join(JOB_LOG), LOG_BYTES).unwrap_or_default();
        let plain = |character: char| if character.is_control() && character != '\n' { ' ' } else { character };
        String::from_utf8_lossy(&text).chars().map(plain).collect::<String>().into_bytes()
    }

    /// The script of the job, with the keys: it goes to `sbatch` through its stdin, and from there to the user's eyes alone. Nothing of them
    /// comes into the arguments of a process, which everybody on the node sees.
    pub(super) fn script(&self, guest: &Guest, attempt: AttemptId, (program, UserDir(own)): (&Path, &UserDir)) -> String {
        let path = |path: PathBuf| quoted(&path.to_string_lossy());
        let (notes, claims) = (path(self.notes_of(guest)), path(self.claims_of(guest)));
        let program = quoted(&program.to_string_lossy());
        let agents = match guest.nodes {
            1 => format!("exec {program} agent --attempt-dir \"$folder\" --user-dir \"$own\"\n"),
            nodes => super::submission::agents(nodes, &program, "\"$folder\"", "--user-dir \"$2\"", " \"$own\""),
        };
        format!(
            "#!/bin/sh\n\
             umask 022\n\
             claims={claims}\n\
             exec >>\"$claims/{JOB_LOG}\" 2>&1\n\
             own=\"{own}\"\n\
             folder=\"$own/attempts/{attempt}\"\n\
             # One job of this name may begin, and again only where its agent finds what happened.\n\
             if ! (set -C && echo \"$SLURM_JOB_ID\" >\"$claims/{CLAIM}\") 2>/dev/null; then\n\
             \x20   read -r first <\"$claims/{CLAIM}\"\n\
             \x20   if [ \"$first\" != \"$SLURM_JOB_ID\" ]; then\n\
             \x20       echo \"job $first has this attempt\"\n\
             \x20       exit 0\n\
             \x20   fi\n\
             \x20   if ! [ -e \"$folder/agent.lock\" ]; then\n\
             \x20       echo \"job $first has begun before, and what became of it is not on this node\"\n\
             \x20       exit {BEGUN_BEFORE}\n\
             \x20   fi\n\
             fi\n\
             umask 077\n\
             {NOTES_VARIABLE}={notes}\n\
             export {NOTES_VARIABLE}\n\
             {agents}"
        )
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<AttemptId, Arc<Guest>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a job that is put back says where it cannot go on.
const BEGUN_BEFORE: i32 = 75;

/// The variable that leads an agent to its notes.
const NOTES_VARIABLE: &str = notes::VARIABLE;

/// 244 random bits.
fn key() -> String {
    format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple())
}

/// Reads the end of a file that somebody else may have put there: a file and no link to another one, nor something that never ends.
fn read_theirs(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let mut file: File = OpenOptions::new().read(true).custom_flags(i32::try_from(flags.bits()).unwrap_or_default()).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.nlink() != 1 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    file.seek(SeekFrom::Start(metadata.len().saturating_sub(most)))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

#[cfg(test)]
mod tests;
