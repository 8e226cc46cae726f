//! Writes an environment of the cache, or the files of its lock, into an archive ([`super::bundle`]).

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tar::{Builder, EntryType, Header};
use trainyard_core::{
    Error, ErrorKind, Result,
    environment::{EnvironmentLock, LockedPackage, Progress, requirement::hide_userinfo, requirement::normalised_name},
    ids::EnvironmentHash,
};

use super::{
    bundle::{CHECKSUMS, Checksums, FILES, FORMAT, Form, Hashing, MANIFEST, Manifest, WHEELS, digest_of, document, failed},
    cache::Cache,
    host::Host,
    pylock::exact_line,
    settings::EnvironmentSettings,
    usage::InUse,
};

/// What stays behind: what Python compiles again by itself, and the notes of the cache.
const LEFT_OUT: [&str; 5] = ["__pycache__", ".complete", "size.json", "lock.json", ".lock"];

/// What an archive was made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Number of files in it.
    pub files: u64,
    /// Their size.
    pub bytes: u64,
    /// The lock that it carries.
    pub lock: EnvironmentLock,
}

/// Writes an archive. Blocks; the environment is in use meanwhile. [`ErrorKind::NotFound`] if it is not in the cache,
/// [`ErrorKind::Unsupported`] if its files can not be had again.
pub fn export(
    settings: &EnvironmentSettings,
    hash: &EnvironmentHash,
    form: Form,
    into: &mut dyn Write,
    progress: &mut dyn FnMut(&Progress),
) -> Result<Exported> {
    let cache = Cache::at(&settings.cache_dir).map_err(|error| Error::invalid(error.to_string()))?;
    let _in_use = InUse::wait(cache.use_file(hash)).map_err(failed("the environment cannot be kept in its place"))?;
    let missing = || Error::not_found(format!("environment {hash} is not in the cache {}", cache.root().display()));
    let lock = cache.complete(hash).ok_or_else(missing)?;
    let prefix = cache.environment(hash);
    let interpreter = interpreter_of(&prefix);
    let mut writer = Writer { builder: Builder::new(into), checksums: Checksums::new(), files: 0, bytes: 0, progress };
    writer.builder.follow_symlinks(false);
    let manifest = |lock| Manifest { format: FORMAT, form, hash: hash.clone(), prefix: prefix.clone(), interpreter, lock };
    match form {
        Form::Environment => {
            let manifest = manifest(lock);
            writer.document(MANIFEST, &document(&manifest)?)?;
            writer.tree(&prefix, Path::new(FILES))?;
            writer.finish(manifest.lock)
        }
        Form::Downloads => {
            let folder = Scratch::in_cache(&cache).map_err(failed("a folder for the downloads cannot be made"))?;
            (writer.progress)(&Progress::step("downloading"));
            download(settings, &prefix, &lock, &folder.0)?;
            let manifest = manifest(as_downloaded(lock, &folder.0)?);
            writer.document(MANIFEST, &document(&manifest)?)?;
            writer.tree(&folder.0, Path::new(WHEELS))?;
            writer.finish(manifest.lock)
        }
    }
}

/// What the `python` of a virtual environment is a link to.
fn interpreter_of(prefix: &Path) -> Option<PathBuf> {
    fs::read_link(prefix.join("bin/python")).ok().filter(|target| target.is_absolute())
}

/// A folder that goes with its owner, or with the next tidying.
struct Scratch(PathBuf);

impl Scratch {
    fn in_cache(cache: &Cache) -> io::Result<Self> {
        let folder = cache.root().join("exports").join(std::process::id().to_string());
        fs::create_dir_all(&folder)?;
        Ok(Self(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(folder = %self.0.display(), %error, "what an export left can not be removed");
        }
    }
}

/// Fetches the files of the lock with the pip of the environment: wheels as they are, checked against the hashes; what is only there
/// as a source is built here, where there is a network.
fn download(settings: &EnvironmentSettings, prefix: &Path, lock: &EnvironmentLock, folder: &Path) -> Result<()> {
    if !lock.conda.is_empty() {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "the downloads of an environment with conda packages cannot be exported; export the environment itself, and import it where cache_dir is the same path",
        ));
    }
    let mut lines: Vec<String> = lock.pip_options.clone();
    lines.extend(lock.packages.iter().map(exact_line));
    let list = folder.join("exact.txt");
    fs::write(&list, lines.join("\n")).map_err(failed("the list of files cannot be written"))?;
    let host = Host::current();
    let mut pip = Command::new(prefix.join("bin/python"));
    pip.args(["-m", "pip", "wheel", "--no-deps", "--disable-pip-version-check", "--no-input", "--progress-bar", "off", "--wheel-dir"]);
    pip.arg(folder).arg("-r").arg(&list).env_clear().envs(host.variables()).current_dir("/").stdin(Stdio::null());
    if let Some(index) = &settings.index_url {
        pip.env("PIP_INDEX_URL", index);
    }
    if settings.offline {
        pip.env("PIP_NO_INDEX", "1").env("PIP_FIND_LINKS", settings.cache_dir.join("wheels"));
    }
    let output = pip.output().map_err(failed("the pip of the environment does not start"))?;
    fs::remove_file(&list).map_err(failed("the list of files cannot be removed"))?;
    if output.status.success() {
        return Ok(());
    }
    let words = hide_userinfo(&String::from_utf8_lossy(&output.stderr));
    let last: Vec<&str> = words.lines().rev().filter(|line| !line.trim().is_empty()).take(6).collect();
    let last: Vec<&str> = last.into_iter().rev().collect();
    Err(Error::new(ErrorKind::Unsupported, format!("the files of the lock cannot be had: {}", last.join("\n"))))
}

/// The lock as it can be followed with the files in `folder` alone: what was built there has its own hash, and nothing comes from a
/// repository any more.
fn as_downloaded(mut lock: EnvironmentLock, folder: &Path) -> Result<EnvironmentLock> {
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(failed("the downloads cannot be read"))? {
        let path = entry.map_err(failed("the downloads cannot be read"))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let Some((package, _)) = name.split_once('-') else { continue };
        let digest = digest_of(&path).map_err(failed(format!("`{name}` cannot be read")))?;
        found.insert(normalised_name(package), format!("sha256:{digest}"));
    }
    for package in &mut lock.packages {
        let Some(hash) = found.get(&package.name) else {
            return Err(Error::new(ErrorKind::Unsupported, format!("pip brought no file for {} {}", package.name, package.version)));
        };
        let LockedPackage { url, hashes, .. } = package;
        if url.take().is_some() {
            hashes.clear();
        }
        if !hashes.contains(hash) {
            hashes.push(hash.clone());
        }
    }
    // Where the files come from now is the folder.
    lock.pip_options.retain(|option| option == "--pre");
    Ok(lock)
}

struct Writer<'a> {
    builder: Builder<&'a mut dyn Write>,
    checksums: Checksums,
    files: u64,
    bytes: u64,
    progress: &'a mut dyn FnMut(&Progress),
}

impl Writer<'_> {
    fn document(&mut self, name: &str, text: &[u8]) -> Result<()> {
        let mut header = Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        header.set_entry_type(EntryType::Regular);
        self.builder.append_data(&mut header, name, text).map_err(failed("the archive cannot be written"))
    }

    /// Everything below `folder`, as `name` in the archive; in order, so that equal trees give equal archives.
    fn tree(&mut self, folder: &Path, name: &Path) -> Result<()> {
        let unreadable = || failed(format!("`{}` cannot be read", folder.display()));
        let mut entries = Vec::new();
        for entry in fs::read_dir(folder).map_err(unreadable())? {
            entries.push(entry.map_err(unreadable())?.path());
        }
        entries.sort();
        for path in entries {
            let Some(file_name) = path.file_name().filter(|name| !LEFT_OUT.iter().any(|out| *name == *out)) else { continue };
            let (name, metadata) = (name.join(file_name), fs::symlink_metadata(&path).map_err(unreadable())?);
            if metadata.is_dir() {
                self.tree(&path, &name)?;
            } else {
                self.file(&path, &name, &metadata)?;
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, name: &Path, metadata: &fs::Metadata) -> Result<()> {
        let unwritable = || failed(format!("`{}` cannot be written into the archive", name.display()));
        let mut header = Header::new_gnu();
        header.set_metadata_in_mode(metadata, tar::HeaderMode::Deterministic);
        let key = name.to_str().ok_or_else(|| Error::new(ErrorKind::Unsupported, format!("the name `{}` is no text", name.display())))?;
        if metadata.is_symlink() {
            let target = fs::read_link(path).map_err(unwritable())?;
            header.set_size(0);
            return self.builder.append_link(&mut header, name, target).map_err(unwritable());
        }
        let mut content = Hashing::new(File::open(path).map_err(unwritable())?);
        self.builder.append_data(&mut header, name, &mut content).map_err(unwritable())?;
        self.checksums.insert(key.to_owned(), content.digest());
        self.files += 1;
        self.bytes += metadata.len();
        if self.files.is_multiple_of(100) {
            (self.progress)(&Progress { what: "writing".into(), done: self.files, total: None, unit: "files".into() });
        }
        Ok(())
    }

    fn finish(mut self, lock: EnvironmentLock) -> Result<Exported> {
        let checksums = document(&self.checksums)?;
        self.document(CHECKSUMS, &checksums)?;
        let into = self.builder.into_inner().map_err(failed("the archive cannot be finished"))?;
        into.flush().map_err(failed("the archive cannot be finished"))?;
        Ok(Exported { files: self.files, bytes: self.bytes, lock })
    }
}
