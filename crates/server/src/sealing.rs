//! Secrets that have to be stored until a run starts: the passwords of registries. They are sealed (AES-256-GCM) before they reach a row and opened only
//! into the order of an attempt.
//!
//! The key is 32 random bytes in a file that only the server's user can read; rows alone, or a copy of the database, give nothing away. Losing the key
//! means that runs with such a password have to be submitted again, nothing else.

use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::{Engine, prelude::BASE64_STANDARD};
use trainyard_core::{Error, ErrorKind, Result};

use crate::key_file;

/// What sealed text begins with: the way in which it was sealed.
const VERSION: &str = "sealed-1:";

/// Seals and opens. `Debug` shows nothing of the key.
pub struct Sealer {
    key: RandomizedNonceKey,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer(..)")
    }
}

impl Sealer {
    /// Reads the key from `path`, or makes one there (mode 0600) when there is none.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when the file can neither be read nor made, or does not hold a key.
    pub fn open(path: &Path) -> Result<Self> {
        Self::from_key(&key_file::open(path, "the key of stored passwords")?)
    }

    /// A sealer with this key of 32 bytes.
    pub(crate) fn from_key(key: &[u8]) -> Result<Self> {
        let key = RandomizedNonceKey::new(&AES_256_GCM, key);
        Ok(Self { key: key.map_err(|_| Error::new(ErrorKind::Internal, "the key of stored passwords cannot be used"))? })
    }

    /// The secret as text that only this server can open; different each time.
    pub(crate) fn seal(&self, secret: &str) -> Result<String> {
        let mut bytes = secret.as_bytes().to_vec();
        let nonce = self.key.seal_in_place_append_tag(Aad::from(VERSION), &mut bytes);
        let nonce = nonce.map_err(|_| Error::new(ErrorKind::Internal, "a password could not be sealed"))?;
        let mut sealed = nonce.as_ref().to_vec();
        sealed.append(&mut bytes);
        Ok(format!("{VERSION}{}", BASE64_STANDARD.encode(sealed)))
    }

    fn opened(&self, sealed: &str) -> Option<String> {
        let mut bytes = BASE64_STANDARD.decode(sealed.strip_prefix(VERSION)?).ok()?;
        let (nonce, content) = bytes.split_at_mut_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let secret = self.key.open_in_place(nonce, Aad::from(VERSION), content).ok()?;
        String::from_utf8(secret.to_vec()).ok()
    }
}

impl trainyard_engine::Unseal for Sealer {
    fn unseal(&self, sealed: &str) -> Result<String> {
        self.opened(sealed).ok_or_else(|| Error::new(ErrorKind::Internal, "a stored password was sealed with another key"))
    }
}

#[cfg(test)]
mod tests {
    use trainyard_engine::Unseal as _;

    use super::*;

    #[test]
    fn a_sealed_secret_is_opened_by_the_same_key_only() {
        let sealer = Sealer::from_key(&[7; 32]).unwrap();
        let sealed = sealer.seal("hunter2 ü").unwrap();
        assert!(sealed.starts_with(VERSION) && !sealed.contains("hunter2"), "{sealed}");
        assert_ne!(sealed, sealer.seal("hunter2 ü").unwrap(), "two runs with one password do not look alike");
        assert_eq!(sealer.unseal(&sealed).unwrap(), "hunter2 ü");
        assert!(Sealer::from_key(&[8; 32]).unwrap().unseal(&sealed).is_err());
        for broken in ["", "sealed-1:", "sealed-1:AAAA", &sealed[..sealed.len() - 4], "hunter2"] {
            assert!(sealer.unseal(broken).is_err(), "{broken}");
        }
        assert!(!format!("{sealer:?}").contains('7'));
    }

    #[test]
    fn the_key_outlives_a_restart_and_only_the_owner_reads_it() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys/seal.key");
        let sealed = Sealer::open(&path).unwrap().seal("x").unwrap();
        assert_eq!(Sealer::open(&path).unwrap().unseal(&sealed).unwrap(), "x");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
