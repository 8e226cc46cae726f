//! Keys in files: 32 random bytes each, made at the first start, that only the server's user can read.

use std::{
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use aws_lc_rs::rand;
use trainyard_core::{Error, ErrorKind, Result};

/// How long a key is.
pub(crate) const KEY_BYTES: usize = 32;

/// Reads the key from `path`, or makes one there (mode 0600) when there is none. `what` it is for, e.g. `the key of signed URLs`.
///
/// # Errors
/// [`ErrorKind::Internal`] when the file can neither be read nor made, or does not hold a key.
pub(crate) fn open(path: &Path, what: &str) -> Result<Vec<u8>> {
    let failed = |rest: &str| Error::new(ErrorKind::Internal, format!("{what}, {}, {rest}", path.display()));
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let mut key = vec![0; KEY_BYTES];
            rand::fill(&mut key).map_err(|_| failed("could not be made: the system gives no random bytes"))?;
            write(path, &key).map_err(|error| failed("could not be made").with_source(error))?;
            key
        }
        Err(error) => return Err(failed("could not be read").with_source(error)),
    };
    if bytes.len() != KEY_BYTES {
        return Err(failed("does not hold 32 bytes; move it away and the server makes a new one"));
    }
    Ok(bytes)
}

/// Writes a new key beside `path` and moves it there, so that a crash never leaves half a key.
fn write(path: &Path, key: &[u8]) -> std::io::Result<()> {
    let staged = PathBuf::from(format!("{}.new", path.display()));
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&staged)?;
    file.write_all(key)?;
    file.sync_all()?;
    std::fs::rename(&staged, path)
}
