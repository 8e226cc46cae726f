//! The run's own layer over an environment of the cache: where `pip install` in a run puts things.
//!
//! The layer is a virtual environment in the attempt's folder, of the same interpreter, whose packages come first and which sees the
//! packages of the cached environment behind its own. pip and uv install into it, leave alone what is outside of it, and what they
//! put there goes with the attempt; nobody else sees it, and root may do no more than anybody. It is made of a few links
//! and copies of small scripts, so it costs a run about a millisecond.
//!
//! Environments of conda have no such layer: their programs look for their files beside the interpreter. There a change is found
//! out at the next use ([`super::measure`]).

use std::{
    fs, io,
    os::unix::{ffi::OsStrExt, fs::PermissionsExt, fs::symlink},
    path::Path,
};

use super::{measure::site_packages, prepare::Prepared};

/// A virtual environment has this file, and says in it which Python it is made of.
const CONFIGURATION: &str = "pyvenv.cfg";
/// What belongs to the cache, not to the environment.
const OWN_FILES: [&str; 3] = ["lock.json", "size.json", "requirements.txt"];
/// What tells Python of the cached packages.
const LINK: &str = "_trainyard_environment.pth";
/// A program that is bigger than this is no script.
const MAX_SCRIPT_BYTES: u64 = 1 << 20;

/// Puts a layer into `folder` and makes `prepared` stand on it. Nothing happens where no virtual environment was built.
///
/// A layer that a former agent left there is replaced: the code has not been started yet.
pub fn overlay(prepared: &mut Prepared, folder: &Path) -> io::Result<()> {
    let Some(environment) = prepared.bin_dir.as_deref().and_then(Path::parent).map(Path::to_owned) else { return Ok(()) };
    if !environment.join(CONFIGURATION).is_file() {
        return Ok(());
    }
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    Layer { environment: &environment, folder }.make()?;
    prepared.interpreter = folder.join("bin/python");
    prepared.bin_dir = Some(folder.join("bin"));
    Ok(())
}

struct Layer<'a> {
    environment: &'a Path,
    folder: &'a Path,
}

impl Layer<'_> {
    fn make(&self) -> io::Result<()> {
        fs::create_dir_all(self.folder.join("bin"))?;
        fs::copy(self.environment.join(CONFIGURATION), self.folder.join(CONFIGURATION))?;
        self.packages()?;
        for entry in fs::read_dir(self.environment.join("bin"))? {
            self.program(&entry?.path())?;
        }
        for entry in fs::read_dir(self.environment)? {
            let entry = entry?;
            let name = entry.file_name();
            let text = name.to_string_lossy();
            if ["bin", "lib", "lib64", CONFIGURATION].contains(&text.as_ref())
                || OWN_FILES.contains(&text.as_ref())
                || text.starts_with('.')
            {
                continue;
            }
            mirror(&entry.path(), &self.folder.join(name))?;
        }
        Ok(())
    }

    fn packages(&self) -> io::Result<()> {
        for place in site_packages(self.environment)? {
            let own = self.folder.join(place.strip_prefix(self.environment).map_err(io::Error::other)?);
            fs::create_dir_all(&own)?;
            // Not merely the path: files of this kind in the cached environment are to be followed as well.
            fs::write(own.join(LINK), format!("import site; site.addsitedir({})\n", literal(&place)))?;
        }
        if self.environment.join("lib64").is_symlink() {
            symlink("lib", self.folder.join("lib64"))?;
        }
        Ok(())
    }

    /// A script that names the cached environment gets to name the layer; anything else is linked.
    fn program(&self, path: &Path) -> io::Result<()> {
        let Some(name) = path.file_name() else { return Ok(()) };
        let own = self.folder.join("bin").join(name);
        let metadata = fs::symlink_metadata(path)?;
        if metadata.is_symlink() {
            let target = fs::read_link(path)?;
            // A link within the folder stays one: `python3` is `python`.
            let within = target.is_relative() && target.components().count() == 1;
            return symlink(if within { target } else { path.canonicalize()? }, own);
        }
        if metadata.is_file() && metadata.len() <= MAX_SCRIPT_BYTES {
            let content = fs::read(path)?;
            let (from, to) = (self.environment.as_os_str().as_bytes(), self.folder.as_os_str().as_bytes());
            // Programs in machine code, too, may have the path in them, where it can't be replaced by one of another length.
            if !content.contains(&0)
                && let Some(replaced) = replaced(&content, from, to)
            {
                fs::write(&own, replaced)?;
                return fs::set_permissions(&own, fs::Permissions::from_mode(metadata.permissions().mode() & 0o777));
            }
        }
        symlink(path, own)
    }
}

/// Folders as folders, files as links: what is added in one place is not added in the other.
fn mirror(from: &Path, to: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(from)?.is_dir() {
        return symlink(from, to);
    }
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        mirror(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

/// The content with another path in the place of one; `None`: it does not occur.
pub(super) fn replaced(content: &[u8], from: &[u8], to: &[u8]) -> Option<Vec<u8>> {
    let mut made = Vec::with_capacity(content.len());
    let mut rest = content;
    while let Some(at) = rest.windows(from.len()).position(|window| window == from) {
        made.extend_from_slice(&rest[..at]);
        made.extend_from_slice(to);
        rest = &rest[at + from.len()..];
    }
    if made.is_empty() && rest.len() == content.len() {
        return None;
    }
    made.extend_from_slice(rest);
    Some(made)
}

/// The path as Python writes it, in ASCII alone: which encoding such a file is read with depends on the version of Python.
fn literal(path: &Path) -> String {
    let bytes: String = path.as_os_str().as_bytes().iter().map(|byte| format!("\\x{byte:02x}")).collect();
    format!("__import__('os').fsdecode(b'{bytes}')")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_names_the_environment_is_rewritten() {
        assert_eq!(replaced(b"#!/a/b/bin/python\nx /a/b", b"/a/b", b"/cc"), Some(b"#!/cc/bin/python\nx /cc".to_vec()));
        assert_eq!(replaced(b"/a/b", b"/a/b", b""), Some(Vec::new()));
        assert_eq!(replaced(b"#!/bin/sh\n", b"/a/b", b"/cc"), None);
    }

    #[test]
    fn any_path_is_a_python_literal() {
        assert_eq!(literal(Path::new("/é'")), "__import__('os').fsdecode(b'\\x2f\\xc3\\xa9\\x27')");
    }
}
