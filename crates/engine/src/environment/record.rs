//! What stood in an environment when it was finished, file by file, and what is different now.
//!
//! A record has the size of every file and when it was last written, which costs next to nothing while an environment is measured anyway.
//! What the content of a file should be is known from the packages that it came with: the `RECORD` of a wheel, the record of a conda
//! package. So looking for changes is a walk, and being sure about them is reading. What Python compiles is left out.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use trainyard_core::environment::{LockedConda, requirement::normalised_name};

use super::{bundle::digest_of, measure::site_packages};

/// Made by every import.
const COMPILED: &str = "__pycache__";
/// The notes of the cache itself, and a lock of uv.
const NOTES: [&str; 5] = [".complete", "size.json", "files.json", "lock.json", ".lock"];
/// Those who write a `RECORD` of what they really installed; the ones in conda packages are of what was packed.
const INSTALLERS: [&str; 2] = ["uv", "pip"];

/// A file as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum Was {
    /// Bytes, and nanoseconds since the epoch when it was last written.
    File(u64, i64),
    /// Where a link leads.
    Link(String),
}

/// What stands in an environment, by path below it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record(BTreeMap<String, Was>);

/// How a file differs from what was recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// It was written since.
    Changed,
    /// It is gone.
    Missing,
    /// It came later.
    Added,
    /// It was so when the environment was built, and is not what its package says.
    NotAsPackaged,
}

/// A file that is not as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Below the environment.
    pub path: String,
    /// How it differs.
    pub how: How,
}

/// Packages whose files differ, and whose downloads share those files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Suspects {
    /// Names of Python packages that pip or uv installed.
    pub(super) pip: BTreeSet<String>,
    /// conda packages.
    pub(super) conda: Vec<LockedConda>,
}

impl Record {
    /// Walks the environment in `folder`.
    pub(super) fn of(folder: &Path) -> io::Result<Self> {
        let mut record = Self::default();
        let mut folders = vec![folder.to_owned()];
        while let Some(inner) = folders.pop() {
            for entry in fs::read_dir(&inner)? {
                let entry = entry?;
                let (path, name) = (entry.path(), entry.file_name());
                if name == COMPILED || (inner == folder && NOTES.iter().any(|note| name == *note)) {
                    continue;
                }
                let metadata = entry.metadata()?;
                if metadata.is_dir() {
                    folders.push(path);
                    continue;
                }
                let was = if metadata.is_symlink() {
                    Was::Link(fs::read_link(&path)?.to_string_lossy().into_owned())
                } else {
                    Was::File(metadata.len(), metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec()))
                };
                record.0.insert(below(folder, &path), was);
            }
        }
        Ok(record)
    }

    /// Number of files.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// What was written or removed since, by size and time; those whose content is what their packages say are not among them. Reads only
    /// the files that look changed.
    pub(super) fn changes(&self, folder: &Path) -> io::Result<Vec<Difference>> {
        let now = Self::of(folder)?;
        let mut found: Vec<Difference> = self.0.iter().filter_map(|(path, was)| now.differs(path, was)).collect();
        if !found.is_empty() {
            let packed = Packed::of(folder)?;
            found.retain(|difference| difference.how == How::Missing || !packed.says(folder, &difference.path));
        }
        Ok(found)
    }

    /// Everything that differs, with every file read of which a package says what is in it.
    pub(super) fn differences(&self, folder: &Path) -> io::Result<Vec<Difference>> {
        let (now, packed) = (Self::of(folder)?, Packed::of(folder)?);
        let mut found = Vec::new();
        for (path, was) in &self.0 {
            match now.differs(path, was) {
                Some(difference) if difference.how == How::Missing || !packed.says(folder, path) => found.push(difference),
                Some(_) => {}
                None if matches!(was, Was::File(..)) && packed.denies(folder, path) => {
                    found.push(Difference { path: path.clone(), how: How::NotAsPackaged });
                }
                None => {}
            }
        }
        let added = now.0.keys().filter(|path| !self.0.contains_key(*path));
        found.extend(added.map(|path| Difference { path: path.clone(), how: How::Added }));
        Ok(found)
    }

    fn differs(&self, path: &str, was: &Was) -> Option<Difference> {
        let how = match self.0.get(path) {
            None => How::Missing,
            Some(is) if is != was => How::Changed,
            Some(_) => return None,
        };
        Some(Difference { path: path.to_owned(), how })
    }
}

/// Whose downloads the files that differ may share: what is added came from nowhere.
pub(super) fn suspects(folder: &Path, differences: &[Difference]) -> io::Result<Suspects> {
    let packed = Packed::of(folder)?;
    let mut suspects = Suspects::default();
    for Difference { path, .. } in differences.iter().filter(|difference| difference.how != How::Added) {
        match packed.0.get(path).map(|file| &packed.1[file.owner]) {
            Some(Owner::Wheel(name)) => drop(suspects.pip.insert(name.clone())),
            Some(Owner::Conda(package)) if !suspects.conda.contains(package) => suspects.conda.push(package.clone()),
            _ => {}
        }
    }
    Ok(suspects)
}

/// Which package a file came with.
enum Owner {
    /// By its name.
    Wheel(String),
    Conda(LockedConda),
}

struct File {
    /// Lower-case hex; `None`: the package does not say.
    sha256: Option<String>,
    /// In the list of owners.
    owner: usize,
    /// Whether whoever installs the package leaves the file as it is.
    verbatim: bool,
}

/// What packages say about files, and the packages.
struct Packed(BTreeMap<String, File>, Vec<Owner>);

impl Packed {
    fn of(folder: &Path) -> io::Result<Self> {
        let mut packed = Self(BTreeMap::new(), Vec::new());
        packed.conda(folder)?;
        for place in site_packages(folder)? {
            packed.wheels(folder, &place)?;
        }
        Ok(packed)
    }

    /// Whether a package says that this is what is in the file.
    fn says(&self, folder: &Path, path: &str) -> bool {
        self.0.get(path).is_some_and(|file| digest_of(&folder.join(path)).is_ok_and(|found| Some(found) == file.sha256))
    }

    /// Whether a package says for certain that something else is in the file.
    fn denies(&self, folder: &Path, path: &str) -> bool {
        let certain = self.0.get(path).filter(|file| file.verbatim && file.sha256.is_some());
        certain.is_some_and(|file| digest_of(&folder.join(path)).is_ok_and(|found| Some(found) != file.sha256))
    }

    /// The wheels in one `site-packages`. They come after conda's: what pip wrote over a conda package is pip's.
    fn wheels(&mut self, folder: &Path, place: &Path) -> io::Result<()> {
        for entry in fs::read_dir(place)? {
            let about = entry?.path();
            let name = about.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".dist-info"));
            let Some((name, _)) = name.and_then(|name| name.rsplit_once('-')) else { continue };
            let installer = fs::read_to_string(about.join("INSTALLER")).unwrap_or_default();
            if !INSTALLERS.contains(&installer.trim()) {
                continue;
            }
            let Ok(record) = fs::read_to_string(about.join("RECORD")) else { continue };
            let owner = self.1.len();
            self.1.push(Owner::Wheel(normalised_name(name)));
            for (path, sha256) in record.lines().filter_map(line_of_record) {
                // Scripts are adapted to where they are, and an import adapts settings.
                let verbatim = !path.starts_with("..") && !path.ends_with(".pth");
                if let Some(path) = within(folder, &place.join(path)) {
                    self.0.insert(path, File { sha256, owner, verbatim });
                }
            }
        }
        Ok(())
    }

    fn conda(&mut self, folder: &Path) -> io::Result<()> {
        #[derive(Deserialize)]
        struct Installed {
            name: String,
            version: String,
            build: String,
            #[serde(default)]
            paths_data: Paths,
        }
        #[derive(Default, Deserialize)]
        struct Paths {
            #[serde(default)]
            paths: Vec<Placed>,
        }
        #[derive(Deserialize)]
        struct Placed {
            #[serde(rename = "_path")]
            path: String,
            sha256: Option<String>,
            /// Only where it differs, because the prefix was written into the file.
            sha256_in_prefix: Option<String>,
        }
        let entries = match fs::read_dir(folder.join("conda-meta")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let path = entry?.path();
            let text = if path.extension().is_some_and(|extension| extension == "json") { fs::read(&path)? } else { continue };
            let Ok(Installed { name, version, build, paths_data }) = serde_json::from_slice(&text) else { continue };
            let owner = self.1.len();
            self.1.push(Owner::Conda(LockedConda { name, version, build, ..LockedConda::default() }));
            for placed in paths_data.paths {
                // pip may have put a script of its own at the same place.
                let verbatim = !placed.path.starts_with("bin/");
                self.0.insert(placed.path, File { sha256: placed.sha256_in_prefix.or(placed.sha256), owner, verbatim });
            }
        }
        Ok(())
    }
}

/// A line `path,sha256=…,size`, whose hash and size may be empty; paths with commas stand in quotes.
fn line_of_record(line: &str) -> Option<(&str, Option<String>)> {
    let (rest, _size) = line.rsplit_once(',')?;
    let (path, hash) = rest.rsplit_once(',')?;
    let digest = hash.strip_prefix("sha256=").and_then(|digest| URL_SAFE_NO_PAD.decode(digest).ok());
    Some((path.trim_matches('"'), digest.map(hex::encode)))
}

/// The path below `folder`, with its `..` resolved. `None`: it leads out.
fn within(folder: &Path, path: &Path) -> Option<String> {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => drop(plain.pop()),
            other => plain.push(other),
        }
    }
    plain.starts_with(folder).then(|| below(folder, &plain))
}

fn below(folder: &Path, path: &Path) -> String {
    path.strip_prefix(folder).unwrap_or(path).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use sha2::{Digest as _, Sha256};

    use super::*;

    const SITE: &str = "lib/python3.11/site-packages";

    /// An environment with one wheel and one conda package.
    fn environment() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let digest = |text: &str| URL_SAFE_NO_PAD.encode(Sha256::digest(text));
        write(&format!("{SITE}/one.py"), "x = 1\n");
        write(&format!("{SITE}/a,b.py"), "x = 2\n");
        write("bin/one", "#!/here\n");
        write(&format!("{SITE}/one-1.0.dist-info/INSTALLER"), "uv\n");
        let lines = [
            format!("one.py,sha256={},6", digest("x = 1\n")),
            format!("\"a,b.py\",sha256={},6", digest("x = 2\n")),
            format!("../../../bin/one,sha256={},6", digest("#!/packed\n")),
            "one-1.0.dist-info/RECORD,,".to_owned(),
        ];
        write(&format!("{SITE}/one-1.0.dist-info/RECORD"), &lines.join("\n"));
        write("share/words.txt", "hello\n");
        let paths =
            serde_json::json!([{ "_path": "share/words.txt", "sha256": hex::encode(Sha256::digest("hello\n")), "path_type": "hardlink" }]);
        let meta = serde_json::json!({ "name": "greet", "version": "1.0", "build": "0", "paths_data": { "paths": paths } });
        write("conda-meta/greet-1.0-0.json", &meta.to_string());
        std::os::unix::fs::symlink("one", folder.path().join("bin/link")).unwrap();
        folder
    }

    fn differences(record: &Record, folder: &Path) -> Vec<(String, How)> {
        record.differences(folder).unwrap().into_iter().map(|Difference { path, how }| (path, how)).collect()
    }

    #[test]
    fn a_file_that_is_rewritten_in_place_is_found_with_its_package() {
        let environment = environment();
        let folder = environment.path();
        let record = Record::of(folder).unwrap();
        assert_eq!(record.len(), 8);
        assert!(differences(&record, folder).is_empty(), "scripts are adapted, and that is no change");

        fs::write(folder.join(format!("{SITE}/a,b.py")), "x = 3\n").unwrap();
        fs::write(folder.join("share/words.txt"), "jello\n").unwrap();
        let found = record.changes(folder).unwrap();
        let expected = [(format!("{SITE}/a,b.py"), How::Changed), ("share/words.txt".to_owned(), How::Changed)];
        assert_eq!(differences(&record, folder), expected);
        let suspects = suspects(folder, &found).unwrap();
        assert_eq!((suspects.pip, suspects.conda[0].name.as_str()), (["one".to_owned()].into(), "greet"));
    }

    #[test]
    fn what_is_gone_what_came_and_where_a_link_leads_is_found_and_what_is_compiled_is_not() {
        let environment = environment();
        let folder = environment.path();
        let record = Record::of(folder).unwrap();
        fs::remove_file(folder.join(format!("{SITE}/one.py"))).unwrap();
        fs::write(folder.join("bin/new"), "").unwrap();
        fs::remove_file(folder.join("bin/link")).unwrap();
        std::os::unix::fs::symlink("elsewhere", folder.join("bin/link")).unwrap();
        fs::create_dir(folder.join(format!("{SITE}/__pycache__"))).unwrap();
        fs::write(folder.join(format!("{SITE}/__pycache__/one.pyc")), "").unwrap();
        fs::write(folder.join("size.json"), "{}").unwrap();
        let expected =
            [("bin/link".to_owned(), How::Changed), (format!("{SITE}/one.py"), How::Missing), ("bin/new".to_owned(), How::Added)];
        assert_eq!(differences(&record, folder), expected);
        let changed: Vec<How> = record.changes(folder).unwrap().into_iter().map(|difference| difference.how).collect();
        assert_eq!(changed, [How::Changed, How::Missing], "what was added is no reason to build again");
    }

    #[test]
    fn a_file_that_was_only_touched_is_no_change_and_one_that_was_wrong_from_the_beginning_is_told_apart() {
        let environment = environment();
        let folder = environment.path();
        fs::write(folder.join(format!("{SITE}/one.py")), "x = 9\n").unwrap();
        let record = Record::of(folder).unwrap();
        let touched = fs::File::options().write(true).open(folder.join("share/words.txt")).unwrap();
        touched.set_modified(SystemTime::now() + Duration::from_secs(60)).unwrap();
        assert_eq!(record.changes(folder).unwrap(), []);
        assert_eq!(differences(&record, folder), [(format!("{SITE}/one.py"), How::NotAsPackaged)]);
    }

    #[test]
    fn a_record_is_read_back() {
        let environment = environment();
        let record = Record::of(environment.path()).unwrap();
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
    }
}
