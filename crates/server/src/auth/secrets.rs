//! Client secrets: 32 random bytes, so that a fast hash is enough, compared in constant time.
//!
//! A memory-hard hash is for passwords that people choose; on a public endpoint it would only be a lever for overload.

use aws_lc_rs::rand;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use trainyard_core::{Error, Result};
use trainyard_store::apps::App;

/// A new secret: 43 characters that need no escaping anywhere.
///
/// # Errors
/// [`Internal`](trainyard_core::ErrorKind::Internal) when the system gives no random bytes.
pub fn generate() -> Result<String> {
    let mut bytes = [0; 32];
    rand::fill(&mut bytes).map_err(|_| Error::internal("the system gives no random bytes"))?;
    Ok(BASE64_URL_SAFE_NO_PAD.encode(bytes))
}

/// What is kept of a secret: its SHA-256, 64 lower-case hexadecimal digits.
pub fn hash(secret: &str) -> String {
    hex::encode(Sha256::digest(secret.as_bytes()))
}

/// Whether `secret` is that of `app`. Takes the same time for an application that does not exist.
pub(crate) fn matches(app: Option<&App>, secret: &str) -> bool {
    let given = hash(secret);
    let nobodys = "0".repeat(given.len());
    let kept = app.map_or(nobodys.as_str(), |app| app.secret_sha256.as_str());
    bool::from(given.as_bytes().ct_eq(kept.as_bytes())) && app.is_some()
}

/// Ties a token to the secret it was got with: a rotated secret has another mark, and so ends the tokens of the old one.
/// Says nothing about the secret: it is part of a hash of the hash of 256 random bits.
pub(crate) fn mark(app: &App) -> String {
    let digest = Sha256::digest(format!("trainyard-secret-mark {}", app.secret_sha256).as_bytes());
    hex::encode(&digest[..8])
}

#[cfg(test)]
mod tests {
    use trainyard_core::ids::AppId;
    use uuid::Uuid;

    use super::*;

    fn app(secret: &str) -> App {
        App { id: AppId(Uuid::nil()), name: "a".into(), secret_sha256: hash(secret), grants: vec![], created_us: 0, generated: false }
    }

    #[test]
    fn only_the_own_secret_matches_and_nobody_has_none() {
        let secret = generate().unwrap();
        assert_eq!(secret.len(), 43);
        assert_ne!(secret, generate().unwrap());
        assert!(matches(Some(&app(&secret)), &secret));
        assert!(!matches(Some(&app(&secret)), &format!("{secret}x")));
        assert!(!matches(Some(&app(&secret)), ""));
        assert!(!matches(None, &secret));
    }

    #[test]
    fn a_new_secret_has_another_mark() {
        assert_eq!(mark(&app("one")), mark(&app("one")));
        assert_ne!(mark(&app("one")), mark(&app("two")));
    }
}
