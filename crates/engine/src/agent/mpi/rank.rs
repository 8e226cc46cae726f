//! One process of an MPI run, between its launcher and its program: it learns its rank from the launcher and writes to a log of that rank.
//!
//! Where the nodes share their folders the launcher's command line says everything. Where they do not, the paths of node 0 mean nothing elsewhere: the agent
//! of each node leaves a note about the program, and a variable that says where it is.

use std::{
    ffi::OsString,
    fs,
    fs::OpenOptions,
    io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use serde::{Deserialize, Serialize};

use crate::{
    agent::process::Launch,
    trust::{Access, replace_file},
};

/// The variables in which launchers tell a process its rank: Open MPI, PMIx, Hydra (MPICH, Intel MPI), Slurm.
const RANKS: [&str; 4] = ["OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"];

/// Says where the note of this node is.
pub(in crate::agent::mpi) const NOTE_VARIABLE: &str = "TRAINYARD_RANK_NOTE";

/// What every rank of a node is started with, besides the variables.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::agent::mpi) struct RankNote {
    program: OsString,
    arguments: Vec<OsString>,
    directory: OsString,
    logs: OsString,
    /// Launchers put folders of their own in front of it.
    path: Option<OsString>,
}

impl RankNote {
    /// Leaves a note about `launch` in the folder of a node. Gives where it is.
    pub(in crate::agent::mpi) fn leave(folder: &Path, launch: &Launch, logs: &Path) -> Result<PathBuf, String> {
        let note = Self {
            program: launch.program.clone(),
            arguments: launch.arguments.clone(),
            directory: launch.directory.clone().into(),
            logs: logs.into(),
            path: launch.variables.get(std::ffi::OsStr::new("PATH")).cloned(),
        };
        let path = folder.join("rank.json");
        let text = serde_json::to_vec(&note).map_err(|error| error.to_string())?;
        replace_file(&path, &text, Access::Owner).map_err(|error| error.chain())?;
        Ok(path)
    }
}

/// Becomes `program`, writing to the log of its rank in `logs`. Returns only if that fails.
pub fn rank_log(logs: &Path, words: &[OsString]) -> io::Error {
    let Some((program, arguments)) = words.split_first() else { return io::Error::other("there is no program to start") };
    let mut command = Command::new(program);
    command.args(arguments);
    become_rank(command, logs)
}

/// Becomes the program that the agent of this node has left a note about. Returns only if that fails.
pub fn rank_of_note() -> io::Error {
    let Some(path) = std::env::var_os(NOTE_VARIABLE) else {
        return io::Error::other(format!(
            "{NOTE_VARIABLE} is not set: the launcher of this process has not kept the variables of its node"
        ));
    };
    let note = fs::read(&path).and_then(|bytes| Ok(serde_json::from_slice::<RankNote>(&bytes)?));
    match note {
        Ok(note) => {
            let logs = PathBuf::from(&note.logs);
            become_rank(note.command(), &logs)
        }
        Err(error) => io::Error::new(error.kind(), format!("`{}` cannot be read: {error}", path.to_string_lossy())),
    }
}

impl RankNote {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).current_dir(&self.directory).env("PWD", &self.directory);
        if let Some(path) = &self.path {
            command.env("PATH", path);
        }
        command
    }
}

fn become_rank(mut command: Command, logs: &Path) -> io::Error {
    let rank = RANKS.iter().find_map(|name| std::env::var(name).ok()?.trim().parse::<u32>().ok());
    let Some(rank) = rank else {
        return io::Error::other(format!("the launcher of this process does not say its rank in any of {}", RANKS.join(", ")));
    };
    let log = logs.join(format!("70_driver_log_{rank}.txt"));
    let opened = OpenOptions::new().create(true).append(true).open(&log).and_then(|file| Ok((file.try_clone()?, file)));
    match opened {
        Ok((copy, file)) => {
            let error = command.stdout(copy).stderr(file).exec();
            io::Error::new(error.kind(), format!("`{}`: {error}", command.get_program().to_string_lossy()))
        }
        Err(error) => io::Error::new(error.kind(), format!("`{}` cannot be opened: {error}", log.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_starts_where_its_own_node_says_with_the_path_that_the_launcher_had_changed() {
        let dir = tempfile::tempdir().unwrap();
        let launch = Launch {
            program: "sh".into(),
            arguments: vec!["-c".into(), "pwd; echo $PATH $PWD".into()],
            variables: [("PATH".into(), "/usr/bin:/bin".into())].into(),
            directory: dir.path().to_owned(),
            output: dir.path().join("log"),
        };
        let path = RankNote::leave(dir.path(), &launch, dir.path()).unwrap();
        let note: RankNote = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        let output = note.command().output().unwrap();
        let here = dir.path().display();
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{here}\n/usr/bin:/bin {here}\n"));
    }
}
