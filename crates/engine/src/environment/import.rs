//! Reads an archive ([`super::bundle`]) into the cache: an environment at its place, or the files for building a lock.
//!
//! Nothing of an archive is used before all of it was read and every file has its checksum; an environment is finished by its marker like one
//! that was built here. Files are written before any link is made, so no entry can write through one.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use tar::{Archive, Entry, EntryType};
use trainyard_core::{
    Error, ErrorKind, Result,
    environment::{EnvironmentLock, LockedConda, Progress, PythonVersion},
    ids::EnvironmentHash,
};

use super::{
    bundle::{
        CHECKSUMS, CONDA, Checksums, FILES, FORMAT, Form, Hashing, MANIFEST, MAX_DOCUMENT_BYTES, Manifest, WHEELS, below, digest_of,
        failed, refused, stays_within,
    },
    cache::{BuilderLock, Cache},
    evict::pin_in,
    host::Host,
    interpreter::{AtHand, Landscape, discover},
    locked::{fits, note_built},
    overlay::replaced,
    settings::EnvironmentSettings,
};

/// What an archive brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// What it held.
    pub form: Form,
    /// Of the environment that it was made from.
    pub hash: EnvironmentHash,
    /// What to give a definition to get exactly this.
    pub lock: EnvironmentLock,
    /// Number of files that were written; 0: everything was there already.
    pub files: u64,
}

/// Reads an archive into the cache. An environment is pinned: where there is no network it could not be built again.
///
/// [`ErrorKind::Invalid`] if the archive is damaged, cut off or hostile; [`ErrorKind::Unsupported`] if it is for another kind of machine.
pub async fn import(
    settings: &EnvironmentSettings,
    from: &mut (dyn Read + Send),
    progress: &mut (dyn FnMut(&Progress) + Send),
) -> Result<Imported> {
    let cache = Cache::at(&settings.cache_dir).map_err(|error| Error::invalid(error.to_string()))?;
    let host = Host::current();
    let cancel = tokio_util::sync::CancellationToken::new();
    let at_hand =
        discover(&host, &Landscape::of(&host), &cancel).await.map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))?;
    // The rest waits for disks only; the caller has nothing else to do.
    let mut archive = Archive::new(from);
    let mut entries = archive.entries().map_err(unreadable)?;
    let manifest = manifest(entries.next())?;
    let mut reader = Reader { cache: &cache, manifest: &manifest, at_hand: &at_hand, found: Checksums::new(), expected: None, progress };
    match manifest.form {
        Form::Environment => reader.environment(entries),
        Form::Downloads => reader.downloads(entries),
    }
}

fn unreadable(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => refused("the archive is cut off"),
        _ => refused(format!("this is not an archive of an environment, or it is damaged: {error}")),
    }
}

fn manifest<R: Read>(first: Option<io::Result<Entry<'_, R>>>) -> Result<Manifest> {
    let mut entry = first.ok_or_else(|| refused("the archive is empty"))?.map_err(unreadable)?;
    let is_manifest = entry.path().is_ok_and(|path| path == Path::new(MANIFEST));
    if !is_manifest {
        return Err(refused("this is not an archive of an environment: it does not begin with its manifest"));
    }
    let text = text_of(&mut entry)?;
    let format = serde_json::from_slice::<serde_json::Value>(&text).ok().and_then(|document| document["format"].as_u64());
    if format.is_some_and(|format| format > u64::from(FORMAT)) {
        return Err(Error::new(ErrorKind::Unsupported, "the archive is of a newer trainyard; import it with that one"));
    }
    serde_json::from_slice(&text).map_err(|error| refused(format!("the manifest of the archive cannot be read: {error}")))
}

fn text_of<R: Read>(entry: &mut Entry<'_, R>) -> Result<Vec<u8>> {
    let (mut text, size) = (Vec::new(), entry.size());
    entry.take(MAX_DOCUMENT_BYTES).read_to_end(&mut text).map_err(unreadable)?;
    if (text.len() as u64) < size { Err(refused("the archive is cut off")) } else { Ok(text) }
}

struct Reader<'a> {
    cache: &'a Cache,
    manifest: &'a Manifest,
    at_hand: &'a AtHand,
    found: Checksums,
    expected: Option<Checksums>,
    progress: &'a mut (dyn FnMut(&Progress) + Send),
}

impl Reader<'_> {
    fn imported(&self) -> Imported {
        let Manifest { form, hash, lock, .. } = self.manifest.clone();
        Imported { form, hash, lock, files: self.found.len() as u64 }
    }

    fn environment<'e, R: Read + 'e>(&mut self, entries: impl Iterator<Item = io::Result<Entry<'e, R>>>) -> Result<Imported> {
        let (cache, hash) = (self.cache, &self.manifest.hash);
        let prefix = cache.environment(hash);
        let interpreter = self.interpreter(&prefix)?;
        let _builder = BuilderLock::wait(&cache.lock_file(hash)).map_err(failed("the environment cannot be locked"))?;
        if !cache.is_complete(hash) {
            let place = cache.place_now(hash).map_err(failed("the place of the environment cannot be cleared"))?;
            let mut links = Vec::new();
            for entry in entries {
                let mut entry = entry.map_err(unreadable)?;
                if let Some(path) = self.path_of(&mut entry, FILES)? {
                    match entry.header().entry_type() {
                        EntryType::Symlink => links.push((path, link_of(&entry)?)),
                        _ => self.write(&mut entry, FILES, (&prefix, &path))?,
                    }
                }
            }
            self.verify()?;
            self.relocate(&prefix, interpreter.as_deref())?;
            for (at, target) in links {
                self.link(&prefix, &at, &target, interpreter.as_deref())?;
            }
            place.finish_now(&self.manifest.lock).map_err(failed("the environment cannot be finished"))?;
            note_built(cache, hash, &self.manifest.lock);
        }
        pin_in(cache, hash).map_err(failed("the environment cannot be pinned"))?;
        Ok(self.imported())
    }

    fn downloads<'e, R: Read + 'e>(&mut self, entries: impl Iterator<Item = io::Result<Entry<'e, R>>>) -> Result<Imported> {
        if !self.at_hand.platforms().iter().any(|platform| fits(&self.manifest.lock.platform, platform)) {
            return Err(self.other_platform());
        }
        let wheels = self.cache.wheels();
        let staging = wheels.join(format!(".import.{}", std::process::id()));
        fs::create_dir_all(&staging).map_err(failed("the folder of imported files cannot be made"))?;
        let outcome = self.stage(entries, &staging);
        if let Err(error) = fs::remove_dir_all(&staging) {
            tracing::warn!(folder = %staging.display(), %error, "what an import left cannot be removed");
        }
        outcome.map(|()| self.imported())
    }

    fn stage<'e, R: Read + 'e>(&mut self, entries: impl Iterator<Item = io::Result<Entry<'e, R>>>, staging: &Path) -> Result<()> {
        let mut names = Vec::new();
        for entry in entries {
            let mut entry = entry.map_err(unreadable)?;
            let folder = if entry.path().is_ok_and(|path| path.starts_with(CONDA)) { CONDA } else { WHEELS };
            if let Some(path) = self.path_of(&mut entry, folder)? {
                let depth = if folder == CONDA { 2 } else { 1 };
                if path.components().count() != depth || entry.header().entry_type() != EntryType::Regular {
                    return Err(refused(format!("`{}` in the archive is no file of a package", path.display())));
                }
                self.write(&mut entry, folder, (&staging.join(folder), &path))?;
                names.push((folder, path));
            }
        }
        self.verify()?;
        let places = names.iter().map(|(folder, name)| self.place_of(folder, name)).collect::<Result<Vec<PathBuf>>>()?;
        self.complete_downloads(&places)?;
        for ((folder, name), place) in names.iter().zip(&places) {
            let unwritable = || failed(format!("{} cannot be put into its place", place.display()));
            place.parent().map_or(Ok(()), fs::create_dir_all).map_err(unwritable())?;
            fs::rename(staging.join(folder).join(name), place).map_err(unwritable())?;
        }
        Ok(())
    }

    /// Where a file goes that was read and is whole; refused if its lock does not name it.
    fn place_of(&self, folder: &str, name: &Path) -> Result<PathBuf> {
        let digest = &self.found[&format!("{folder}/{}", name.display())];
        let lock = &self.manifest.lock;
        let unknown = || refused(format!("`{}` in the archive is not one of the files that its lock names", name.display()));
        if folder == CONDA {
            let file = name.file_name().and_then(|file| file.to_str()).unwrap_or_default();
            let is_named = |package: &LockedConda| package.sha256.as_ref() == Some(digest) && file_of(&package.url) == file;
            let stands_right = name.parent().is_some_and(|parent| parent == Path::new(digest));
            return if stands_right && lock.conda.iter().any(is_named) { Ok(self.cache.brought().join(name)) } else { Err(unknown()) };
        }
        let hash = format!("sha256:{digest}");
        if !lock.packages.iter().any(|package| package.hashes.contains(&hash)) {
            return Err(unknown());
        }
        let place = self.cache.wheels().join(name);
        if place.exists() && digest_of(&place).map_err(failed("an imported file cannot be read"))? != *digest {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("{} is there already with other content; remove it if nobody needs it", place.display()),
            ));
        }
        Ok(place)
    }

    /// Fails if the archive lacks a conda package of its lock: that would come to light on the machine without a network, when it is too late.
    fn complete_downloads(&self, places: &[PathBuf]) -> Result<()> {
        for LockedConda { name, url, sha256, .. } in &self.manifest.lock.conda {
            let place = self.cache.brought().join(sha256.as_deref().unwrap_or_default()).join(file_of(url));
            if !places.contains(&place) {
                return Err(refused(format!("the archive lacks the file of the package {name}, which its lock names")));
            }
        }
        Ok(())
    }

    /// The path of a file of the archive; `None` for its last document.
    fn path_of<R: Read>(&mut self, entry: &mut Entry<'_, R>, folder: &str) -> Result<Option<PathBuf>> {
        let path = entry.path().map_err(unreadable)?.into_owned();
        if path == Path::new(CHECKSUMS) {
            let text = text_of(entry)?;
            let sums =
                serde_json::from_slice(&text).map_err(|error| refused(format!("the checksums of the archive cannot be read: {error}")))?;
            self.expected = Some(sums);
            return Ok(None);
        }
        if self.expected.is_some() {
            return Err(refused("there is something behind the checksums of the archive"));
        }
        if !matches!(entry.header().entry_type(), EntryType::Regular | EntryType::Symlink) {
            return Err(refused(format!("`{}` in the archive is neither a file nor a link", path.display())));
        }
        match below(&path, folder) {
            Some(inner) => Ok(Some(inner.to_owned())),
            None => Err(refused(format!("`{}` in the archive leads out of its folder", path.display()))),
        }
    }

    fn write<R: Read>(&mut self, entry: &mut Entry<'_, R>, folder: &str, to: (&Path, &Path)) -> Result<()> {
        let place = to.0.join(to.1);
        let unwritable = || failed(format!("{} cannot be written", place.display()));
        place.parent().map_or(Ok(()), fs::create_dir_all).map_err(unwritable())?;
        let mode = entry.header().mode().map_err(unreadable)?;
        let size = entry.header().size().map_err(unreadable)?;
        let mut file = Hashing::new(File::create_new(&place).map_err(unwritable())?);
        // The two sides of the copy fail for different reasons; a disk that is full is not the archive's fault.
        let copied = io::copy(entry, &mut file).map_err(|error| match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => unwritable()(error),
            _ => unreadable(error),
        })?;
        if copied != size {
            return Err(refused("the archive is cut off"));
        }
        fs::set_permissions(&place, fs::Permissions::from_mode(mode & 0o755 | 0o600)).map_err(unwritable())?;
        self.found.insert(format!("{folder}/{}", to.1.display()), file.digest());
        if self.found.len().is_multiple_of(100) {
            (self.progress)(&Progress { what: "reading".into(), done: self.found.len() as u64, total: None, unit: "files".into() });
        }
        Ok(())
    }

    /// Every file is what it was, and none is missing.
    fn verify(&self) -> Result<()> {
        let Some(expected) = &self.expected else { return Err(refused("the archive is cut off: its checksums are missing")) };
        for (path, sum) in expected {
            match self.found.get(path) {
                None => return Err(refused(format!("`{path}` is missing in the archive"))),
                Some(found) if found != sum => {
                    return Err(refused(format!("`{path}` in the archive is damaged: it has the SHA-256 {found} instead of {sum}")));
                }
                Some(_) => {}
            }
        }
        match self.found.keys().find(|path| !expected.contains_key(*path)) {
            Some(unknown) => Err(refused(format!("`{unknown}` in the archive has no checksum"))),
            None => Ok(()),
        }
    }

    /// What a virtual environment is to stand on here; `None`: it brings its own.
    fn interpreter(&self, prefix: &Path) -> Result<Option<PathBuf>> {
        let Manifest { lock, interpreter, prefix: old, .. } = self.manifest;
        if !lock.conda.is_empty() && old != prefix {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the environment was built at {} and has conda packages, which work at that very path only; set cache_dir under [environments] so that it is the same here ({})",
                    old.display(),
                    prefix.display()
                ),
            ));
        }
        if interpreter.is_none() {
            let fitting = lock.platform.is_empty() || self.at_hand.platforms().iter().any(|platform| fits(&lock.platform, platform));
            return if fitting { Ok(None) } else { Err(self.other_platform()) };
        }
        let version: PythonVersion = lock
            .python
            .parse()
            .map_err(|_| refused(format!("the lock in the archive names no version of Python but `{}`", lock.python)))?;
        let Some(found) = self.at_hand.exactly(version) else {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the environment stands on Python {version}, which is not at hand on this machine (at hand: {}); install it",
                    self.at_hand.shown()
                ),
            ));
        };
        if !fits(&lock.platform, &found.platform) {
            return Err(self.other_platform());
        }
        Ok(Some(found.path))
    }

    fn other_platform(&self) -> Error {
        Error::new(
            ErrorKind::Unsupported,
            format!(
                "the environment was built on {}, and this machine is {}",
                self.manifest.lock.platform,
                self.at_hand.platforms().first().map_or("unknown", String::as_str)
            ),
        )
    }

    /// Makes scripts and settings that name the old place name the new one.
    fn relocate(&self, prefix: &Path, interpreter: Option<&Path>) -> Result<()> {
        let unwritable = |path: &Path| failed(format!("{} cannot be adapted", path.display()));
        let configuration = prefix.join("pyvenv.cfg");
        if let (Some(home), Ok(text)) = (interpreter.and_then(Path::parent), fs::read_to_string(&configuration)) {
            let lines = text.lines().map(|line| match line.split_once('=') {
                Some((key, _)) if key.trim() == "home" => format!("home = {}\n", home.display()),
                _ => format!("{line}\n"),
            });
            fs::write(&configuration, lines.collect::<String>()).map_err(unwritable(&configuration))?;
        }
        if self.manifest.prefix == prefix {
            return Ok(());
        }
        let (from, to) = (self.manifest.prefix.as_os_str().as_encoded_bytes(), prefix.as_os_str().as_encoded_bytes());
        for path in self.found.keys().filter_map(|path| path.strip_prefix("files/")) {
            let is_text = path.starts_with("bin/") || path.ends_with(".pth") || path.ends_with("/RECORD") || path == "pyvenv.cfg";
            let place = prefix.join(path);
            let content = if is_text { fs::read(&place).map_err(unwritable(&place))? } else { Vec::new() };
            if !content.contains(&0)
                && let Some(adapted) = replaced(&content, from, to)
            {
                fs::write(&place, adapted).map_err(unwritable(&place))?;
            }
        }
        Ok(())
    }

    fn link(&self, prefix: &Path, at: &Path, target: &Path, interpreter: Option<&Path>) -> Result<()> {
        let place = prefix.join(at);
        let is_interpreter = self.manifest.interpreter.as_deref() == Some(target) && at.starts_with("bin");
        let target = if is_interpreter {
            interpreter.unwrap_or(target).to_owned()
        } else if let Ok(inner) = target.strip_prefix(&self.manifest.prefix)
            && below(&Path::new(FILES).join(inner), FILES).is_some()
        {
            prefix.join(inner)
        } else if stays_within(at, target) {
            target.to_owned()
        } else {
            return Err(refused(format!(
                "the link `{}` in the archive leads out of the environment, to `{}`",
                at.display(),
                target.display()
            )));
        };
        if at.ancestors().skip(1).any(|above| prefix.join(above).is_symlink() && above != Path::new("")) {
            return Err(refused(format!("the link `{}` in the archive stands behind another link", at.display())));
        }
        let unwritable = || failed(format!("{} cannot be linked", place.display()));
        place.parent().map_or(Ok(()), fs::create_dir_all).map_err(unwritable())?;
        symlink(target, &place).map_err(unwritable())
    }
}

/// The name of the file that a URL ends with.
fn file_of(url: &str) -> &str {
    url.rsplit('/').next().unwrap_or_default()
}

fn link_of<R: Read>(entry: &Entry<'_, R>) -> Result<PathBuf> {
    let target = entry.link_name().map_err(unreadable)?;
    target.map(std::borrow::Cow::into_owned).ok_or_else(|| refused("a link in the archive leads nowhere"))
}
