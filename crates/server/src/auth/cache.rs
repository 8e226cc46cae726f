//! Tokens that were verified before.
//!
//! Checking a signature costs a tenth of a millisecond of a core, and a client sends the same token thousands of times.
//! Only the hash of a token is kept, and only while the token holds; whether its application or run still stands is asked
//! every time, elsewhere.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use sha2::{Digest, Sha256};

use super::tokens::Claims;

/// More tokens than this at once are not remembered; about 5 MB.
const CAPACITY: usize = 8192;

type Key = [u8; 32];

/// Claims by the hash of their token.
#[derive(Debug, Default)]
pub(crate) struct Verified {
    claims: Mutex<HashMap<Key, Arc<Claims>>>,
}

impl Verified {
    pub(crate) fn key(token: &str) -> Key {
        Sha256::digest(token.as_bytes()).into()
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Arc<Claims>> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// Remembers `claims`; when full, first forgets what has ended by `now_s`, then everything.
    pub(crate) fn insert(&self, key: Key, claims: Arc<Claims>, now_s: i64) {
        let mut kept = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= CAPACITY {
            kept.retain(|_, claims| claims.exp > now_s);
        }
        if kept.len() >= CAPACITY {
            kept.clear();
        }
        kept.insert(key, claims);
    }
}
