//! Writes an environment of the cache, or the files of its lock, into an archive ([`super::bundle`]).

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use tar::{Builder, EntryType, Header};
use trainyard_core::{
    Error, ErrorKind, Result,
    environment::{EnvironmentLock, Progress},
    ids::EnvironmentHash,
};

use super::{
    bundle::{CHECKSUMS, CONDA, Checksums, FILES, Form, Hashing, MANIFEST, Manifest, WHEELS, document, failed, format_of},
    cache::Cache,
    collect::Collected,
    settings::EnvironmentSettings,
    usage::InUse,
};

/// What stays behind: what Python compiles again by itself, and the notes of the cache.
const LEFT_OUT: [&str; 6] = ["__pycache__", ".complete", "size.json", "files.json", "lock.json", ".lock"];

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

/// Writes an archive; the environment is in use meanwhile. [`ErrorKind::NotFound`] if it is not in the cache,
/// [`ErrorKind::Unsupported`] if its files can not be had again.
pub async fn export(
    settings: &EnvironmentSettings,
    hash: &EnvironmentHash,
    form: Form,
    into: &mut (dyn Write + Send),
    progress: &mut (dyn FnMut(&Progress) + Send),
) -> Result<Exported> {
    let cache = Cache::at(&settings.cache_dir).map_err(|error| Error::invalid(error.to_string()))?;
    let _in_use = InUse::wait(cache.use_file(hash)).map_err(failed("the environment cannot be kept in its place"))?;
    let missing = || Error::not_found(format!("environment {hash} is not in the cache {}", cache.root().display()));
    let lock = cache.complete(hash).ok_or_else(missing)?;
    let prefix = cache.environment(hash);
    let interpreter = interpreter_of(&prefix);
    let manifest = |lock| Manifest { format: format_of(form, &lock), form, hash: hash.clone(), prefix: prefix.clone(), interpreter, lock };
    match form {
        Form::Environment => {
            let mut writer = Writer::into(into, progress);
            let manifest = manifest(lock);
            writer.document(MANIFEST, &document(&manifest)?)?;
            writer.tree(&prefix, Path::new(FILES))?;
            writer.finish(manifest.lock)
        }
        Form::Downloads => {
            let folder = Scratch::in_cache(&cache).map_err(failed("a folder for the downloads cannot be made"))?;
            let collected = Collected::of(settings, (&prefix, &lock), &folder.0, progress).await?;
            let mut writer = Writer::into(into, progress);
            let manifest = manifest(collected.lock);
            writer.document(MANIFEST, &document(&manifest)?)?;
            writer.tree(&collected.wheels, Path::new(WHEELS))?;
            writer.tree(&collected.conda, Path::new(CONDA))?;
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

struct Writer<'a> {
    builder: Builder<&'a mut (dyn Write + Send)>,
    checksums: Checksums,
    files: u64,
    bytes: u64,
    progress: &'a mut (dyn FnMut(&Progress) + Send),
}

impl<'a> Writer<'a> {
    fn into(into: &'a mut (dyn Write + Send), progress: &'a mut (dyn FnMut(&Progress) + Send)) -> Self {
        let mut builder = Builder::new(into);
        builder.follow_symlinks(false);
        Self { builder, checksums: Checksums::new(), files: 0, bytes: 0, progress }
    }

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
