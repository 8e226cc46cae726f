//! The key that signs access tokens: ES256, in `DIR/keys/token.pem` (PKCS #8, mode 0600), made on first start.
//!
//! Losing the file ends every token that is out, nothing else. Its id is the thumbprint of its public half (RFC 7638).

use std::{fs, path::Path};

use aws_lc_rs::{
    hmac,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
};
use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use jsonwebtoken::{DecodingKey, EncodingKey};
use sha2::{Digest, Sha256};
use trainyard_core::{Error, ErrorKind, Result, ids::AttemptId};
use trainyard_engine::trust::{self, Access};
use trainyard_wire::azureml::tokens::{Jwk, Jwks};

/// Both halves of the key, ready for use. `Debug` shows only the id.
pub(crate) struct SigningKey {
    /// RFC 7638 thumbprint, base64url.
    pub id: String,
    /// The private half.
    pub signs: EncodingKey,
    /// The public half.
    pub verifies: DecodingKey,
    x: String,
    y: String,
    /// What other secrets are derived from.
    derives: hmac::Key,
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKey").field("id", &self.id).finish_non_exhaustive()
    }
}

impl SigningKey {
    /// Reads the key of the data directory `dir`, making it when there is none.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let folder = dir.join("keys");
        let path = folder.join("token.pem");
        let failed =
            |what: &str, error: std::io::Error| Error::new(ErrorKind::Internal, format!("cannot {what} `{}`: {error}", path.display()));
        fs::create_dir_all(&folder).map_err(|error| failed("make the folder of", error))?;
        // Two servers that start for the first time at once would otherwise each keep a key of their own.
        let lock = fs::OpenOptions::new().write(true).create(true).truncate(false).open(folder.join(".lock"));
        let _lock = lock.and_then(|file| file.lock().map(|()| file)).map_err(|error| failed("lock the folder of", error))?;
        if !path.exists() {
            trust::replace_file(&path, generate()?.as_bytes(), Access::Owner)?;
        }
        let pem = fs::read_to_string(&path).map_err(|error| failed("read", error))?;
        Self::from_pem(&pem).map_err(|error| {
            let problem = format!(
                "`{}` does not hold a P-256 private key (PKCS #8 PEM); move it away and the server makes a new one",
                path.display()
            );
            Error::new(ErrorKind::Internal, problem).with_source(error)
        })
    }

    /// A key from its PEM.
    pub(crate) fn from_pem(pem: &str) -> Result<Self> {
        let base64: String = pem.lines().filter(|line| !line.starts_with("-----")).map(str::trim).collect();
        let der = BASE64_STANDARD.decode(base64).map_err(Error::internal)?;
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der).map_err(|error| Error::internal(error.to_string()))?;
        // An uncompressed point: 0x04, then both coordinates of 32 bytes.
        let point = pair.public_key().as_ref();
        let (x, y) = point[1..].split_at(32);
        let (x, y) = (BASE64_URL_SAFE_NO_PAD.encode(x), BASE64_URL_SAFE_NO_PAD.encode(y));
        let thumbprint = Sha256::digest(format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#).as_bytes());
        Ok(Self {
            id: BASE64_URL_SAFE_NO_PAD.encode(thumbprint),
            signs: EncodingKey::from_ec_der(&der),
            verifies: DecodingKey::from_ec_components(&x, &y).map_err(Error::internal)?,
            x,
            y,
            derives: hmac::Key::new(hmac::HMAC_SHA256, &der),
        })
    }

    /// What the agents of an attempt know each other by: derived, so that it is kept nowhere and is the same after a restart.
    pub(crate) fn node_key(&self, attempt: AttemptId) -> String {
        hex::encode(hmac::sign(&self.derives, format!("trainyard node key 1:{attempt}").as_bytes()))
    }

    /// The public half as a JSON Web Key Set.
    pub(crate) fn key_set(&self) -> Jwks {
        let text = |text: &str| text.to_owned();
        let (crv, x, y) = (Some(text("P-256")), Some(self.x.clone()), Some(self.y.clone()));
        let key = Jwk { kty: text("EC"), key_use: text("sig"), kid: self.id.clone(), alg: text("ES256"), crv, x, y, ..Jwk::default() };
        Jwks { keys: vec![key] }
    }
}

fn generate() -> Result<String> {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(|_| Error::internal("the system gives no random bytes"))?;
    let der = pair.to_pkcs8v1().map_err(|_| Error::internal("a new P-256 key could not be written as PKCS #8"))?;
    let base64 = BASE64_STANDARD.encode(der.as_ref());
    let lines: Vec<&str> = base64.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    Ok(format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n")))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_key_is_made_once_is_private_and_stays_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let first = SigningKey::open(dir.path()).unwrap();
        let again = SigningKey::open(dir.path()).unwrap();
        assert_eq!(first.id, again.id);
        let mode = fs::metadata(dir.path().join("keys/token.pem")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let other = tempfile::tempdir().unwrap();
        assert_ne!(SigningKey::open(other.path()).unwrap().id, first.id);
    }

    #[test]
    fn a_broken_key_file_is_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("keys")).unwrap();
        let path = dir.path().join("keys/token.pem");
        fs::write(&path, "not a key").unwrap();
        let error = SigningKey::open(dir.path()).unwrap_err();
        assert!(error.message().contains("does not hold a P-256 private key"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "not a key");
    }

    #[test]
    fn the_key_of_an_attempts_nodes_is_the_same_after_a_restart_and_nobody_elses() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (one, two) = (AttemptId(uuid::Uuid::from_u128(1)), AttemptId(uuid::Uuid::from_u128(2)));
        let key = SigningKey::open(dir.path()).unwrap().node_key(one);
        assert_eq!(key.len(), 64);
        let again = SigningKey::open(dir.path()).unwrap();
        assert_eq!(again.node_key(one), key);
        assert_ne!(again.node_key(two), key);
        assert_ne!(SigningKey::open(other.path()).unwrap().node_key(one), key);
    }

    #[test]
    fn no_debug_output_shows_the_key() {
        let dir = tempfile::tempdir().unwrap();
        let key = SigningKey::open(dir.path()).unwrap();
        assert_eq!(format!("{key:?}"), format!("SigningKey {{ id: {:?}, .. }}", key.id));
    }
}
