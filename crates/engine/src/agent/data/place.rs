//! Puts what was fetched where the code looks for it: links in the working directory, words of the command line, variables, mounts of a container.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use trainyard_core::{
    data::{Paths, Section},
    definition::{Definition, Entry as Start},
    run::Cause,
};

use super::fetch::{Entry, Fetched, Seen};
use crate::data::DatastoreAccess;

/// Where everything is for the code.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::agent) struct Placed {
    paths: Paths,
    /// Variables that tell the paths.
    pub(in crate::agent) variables: BTreeMap<String, String>,
    /// The same under the bare names of inputs and outputs, as the v1 service set them: where nothing else is called so.
    pub(in crate::agent) bare: BTreeMap<String, String>,
    /// What a container must see, at the same path.
    pub(in crate::agent) mounts: BTreeMap<PathBuf, DatastoreAccess>,
}

impl Placed {
    /// Links what `fetched` holds into `work`, the working directory. `Err`: what ends the attempt.
    pub(in crate::agent) fn new(fetched: Fetched, work: &Path) -> Result<Self, Cause> {
        let mut placed = Self::default();
        let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
        for entry in &fetched.entries {
            let what = format!("{}.{}", entry.section.property(), entry.name);
            let path = placed.put(entry, (&fetched.root, work)).map_err(|fault| match fault {
                Unplaced::Taken(why) => Cause::DataFailed { message: format!("{what}: {why}") },
                Unplaced::Disk(error) => Cause::StartFailed {
                    message: format!("{what} cannot be put into the working directory: {error}"),
                    by_definition: false,
                },
            })?;
            placed.tell(entry, &path);
            let is_address = matches!(entry.seen, Seen::Address(_));
            match entry.section {
                Section::Inputs if !is_address => inputs.push(entry),
                Section::Outputs => outputs.push(entry.name.as_str()),
                Section::Inputs | Section::References => {}
            }
            placed.paths.by_name.insert((entry.section, entry.name.clone()), path);
        }
        if !inputs.is_empty() {
            let word = |entry: &&Entry| {
                let mechanism = if matches!(entry.seen, Seen::Mounted { .. }) { "mount" } else { "download" };
                format!("{}:{mechanism}", entry.variable.as_ref().unwrap_or(&entry.name))
            };
            let words: Vec<String> = inputs.iter().map(word).collect();
            placed.variables.insert("AZUREML_DATASET_ENVIRONMENT_VARS".into(), words.join(","));
        }
        if !outputs.is_empty() {
            placed.variables.insert("AZUREML_DATASET_FILE_OUTPUTS".into(), outputs.join(";"));
        }
        Ok(placed)
    }

    /// The definition with the paths in its command line.
    pub(in crate::agent) fn fill(&self, definition: &Definition) -> Definition {
        let all = |words: &[String]| words.iter().map(|word| self.paths.fill(word)).collect();
        let entry = match &definition.entry {
            Start::Script { path } => Start::Script { path: path.clone() },
            Start::Command { words } => Start::Command { words: all(words) },
        };
        Definition { entry, arguments: all(&definition.arguments), ..definition.clone() }
    }

    fn tell(&mut self, entry: &Entry, path: &str) {
        let prefix = match entry.section {
            Section::References => "AZUREML_DATAREFERENCE_",
            Section::Inputs => "AZURE_ML_INPUT_",
            Section::Outputs => "AZURE_ML_OUTPUT_",
        };
        self.variables.insert(format!("{prefix}{}", entry.name), path.to_owned());
        if let Some(variable) = &entry.variable {
            self.variables.insert(variable.clone(), path.to_owned());
        } else if entry.section != Section::References {
            self.bare.insert(entry.name.clone(), path.to_owned());
        }
    }

    /// Gives the path that the code is told.
    fn put(&mut self, entry: &Entry, (root, work): (&Path, &Path)) -> Result<String, Unplaced> {
        let wanted = entry.path_on_compute.as_ref().map(|path| work.join(path));
        let path = match &entry.seen {
            Seen::Address(address) => return Ok(address.clone()),
            Seen::Collected(folder) => {
                let folder = wanted.unwrap_or_else(|| folder.clone());
                if !folder.starts_with(work) {
                    self.mounts.insert(root.to_owned(), DatastoreAccess::ReadWrite);
                }
                make_inside(&folder, work)?;
                return Ok(folder.display().to_string());
            }
            Seen::Mounted { path, access } => {
                let known = self.mounts.entry(path.clone()).or_insert(*access);
                if *access == DatastoreAccess::ReadWrite {
                    *known = *access;
                }
                path
            }
            Seen::Copied(path) => {
                self.mounts.insert(root.to_owned(), DatastoreAccess::ReadWrite);
                path
            }
        };
        let Some(wanted) = wanted else { return Ok(path.display().to_string()) };
        link(&wanted, path, entry, work)?;
        Ok(wanted.display().to_string())
    }
}

/// Why something is not where it should be.
enum Unplaced {
    /// Something else is there.
    Taken(String),
    /// The disk.
    Disk(io::Error),
}

impl From<io::Error> for Unplaced {
    fn from(error: io::Error) -> Self {
        Self::Disk(error)
    }
}

/// Makes a folder; what is there already may stay, a file as well: then that is what is uploaded.
fn make_inside(folder: &Path, work: &Path) -> Result<(), Unplaced> {
    if folder.exists() {
        return Ok(());
    }
    fs::create_dir_all(folder).map_err(|error| match error.kind() {
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => Unplaced::Taken(in_the_way(folder, work)),
        _ => Unplaced::Disk(error),
    })
}

fn in_the_way(path: &Path, work: &Path) -> String {
    format!("a file of the snapshot is in the way of `{}`", path.strip_prefix(work).unwrap_or(path).display())
}

/// Links `at` to `to`. The same link is left alone: an agent before this one may have made it.
fn link(at: &Path, to: &Path, entry: &Entry, work: &Path) -> Result<(), Unplaced> {
    if fs::read_link(at).is_ok_and(|there| there == to) {
        return Ok(());
    }
    let parent = at.parent().unwrap_or(work);
    make_inside(parent, work)?;
    if !parent.is_dir() {
        return Err(Unplaced::Taken(in_the_way(at, work)));
    }
    match fs::symlink_metadata(at) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
        // An empty folder says only where something is to be.
        Ok(meta) if meta.is_dir() && fs::remove_dir(at).is_ok() => {}
        Ok(_) if !entry.overwrite => {
            let shown = at.strip_prefix(work).unwrap_or(at).display();
            let why = format!("the snapshot has `{shown}` already; say Overwrite = true, or choose another PathOnCompute");
            return Err(Unplaced::Taken(why));
        }
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(at)?,
        Ok(_) => fs::remove_file(at)?,
    }
    Ok(symlink(to, at)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(section: Section, name: &str, seen: Seen, path_on_compute: Option<&str>) -> Entry {
        let path_on_compute = path_on_compute.map(str::to_owned);
        Entry { section, name: name.into(), seen, path_on_compute, overwrite: false, variable: None }
    }

    fn placed(entries: Vec<Entry>, work: &Path) -> Result<Placed, Cause> {
        Placed::new(Fetched { entries, root: work.with_file_name("data") }, work)
    }

    #[test]
    fn the_code_is_told_where_everything_is() {
        let root = tempfile::tempdir().unwrap();
        let work = root.path().join("work");
        fs::create_dir(&work).unwrap();
        let mounted = |access| Seen::Mounted { path: "/store/a".into(), access };
        let named =
            Entry { variable: Some("TRAIN".into()), ..entry(Section::Inputs, "train", mounted(DatastoreAccess::Read), Some("in/train")) };
        let found = placed(
            vec![
                entry(Section::References, "ref", mounted(DatastoreAccess::ReadWrite), None),
                named,
                entry(Section::Inputs, "copy", Seen::Copied("/a/data/inputs/copy/x.csv".into()), None),
                entry(Section::Inputs, "url", Seen::Address("https://h/x".into()), None),
                entry(Section::Outputs, "model", Seen::Collected(root.path().join("data/outputs/model")), None),
                entry(Section::Outputs, "plots", Seen::Collected("/unused".into()), Some("made/plots")),
            ],
            &work,
        )
        .unwrap();
        let linked = work.join("in/train").display().to_string();
        assert_eq!(found.variables["AZUREML_DATAREFERENCE_ref"], "/store/a");
        assert_eq!((&found.variables["AZURE_ML_INPUT_train"], &found.variables["TRAIN"]), (&linked, &linked));
        assert_eq!(fs::read_link(&linked).unwrap(), Path::new("/store/a"));
        assert_eq!(found.variables["AZUREML_DATASET_ENVIRONMENT_VARS"], "TRAIN:mount,copy:download");
        assert_eq!(found.variables["AZUREML_DATASET_FILE_OUTPUTS"], "model;plots");
        assert!(work.join("made/plots").is_dir() && root.path().join("data/outputs/model").is_dir());
        assert_eq!(found.bare.keys().collect::<Vec<_>>(), ["copy", "model", "plots", "url"]);
        assert_eq!(found.mounts[Path::new("/store/a")], DatastoreAccess::ReadWrite, "once, with the larger right");
        assert_eq!(found.mounts[&root.path().join("data")], DatastoreAccess::ReadWrite);
    }

    #[test]
    fn what_the_snapshot_has_is_replaced_only_when_asked() {
        let root = tempfile::tempdir().unwrap();
        let work = root.path().join("work");
        fs::create_dir_all(work.join("data/old")).unwrap();
        fs::create_dir_all(work.join("empty")).unwrap();
        fs::write(work.join("file"), "x").unwrap();
        let at = |path: &str| entry(Section::Inputs, "a", Seen::Copied(root.path().to_owned()), Some(path));
        let refused = placed(vec![at("data")], &work).unwrap_err();
        assert!(refused.sentence().contains("Data.a: the snapshot has `data` already"), "{}", refused.sentence());
        let refused = placed(vec![at("file/below")], &work).unwrap_err();
        assert!(refused.sentence().contains("is in the way"), "{}", refused.sentence());
        for path in ["data", "empty", "new/er"] {
            let entries = || vec![Entry { overwrite: path == "data", ..at(path) }];
            assert!(placed(entries(), &work).is_ok(), "{path}");
            assert!(placed(entries(), &work).is_ok(), "{path} again, as after a crash");
            assert_eq!(fs::read_link(work.join(path)).unwrap(), root.path());
        }
    }
}
