//! Where in which pack a digest may be: in memory for all packs, and as a file beside each pack that is full.
//!
//! An entry holds eight bytes of the digest, so that a million blobs take some 30 MB. It is a hint: whoever follows it compares the whole
//! digest with the header there. Digests that begin alike, which only a forger makes, stand one after the other.

use std::{
    collections::HashMap,
    fs,
    io::{self, Write as _},
    path::Path,
};

use sha2::{Digest as _, Sha256};

const MAGIC: &[u8; 8] = b"TYindex1";
const ENTRY_BYTES: usize = 12;
const HASH_BYTES: usize = 32;

/// A place in a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Location {
    /// The number of the pack in this process.
    pub(super) pack: u32,
    /// Where the header begins.
    pub(super) offset: u32,
}

/// All entries.
#[derive(Default)]
pub(super) struct Index {
    first: HashMap<u64, Location>,
    /// Further ones of the same key, in the order in which they were noted.
    more: Vec<(u64, Location)>,
}

impl Index {
    pub(super) fn insert(&mut self, key: u64, location: Location) {
        if *self.first.entry(key).or_insert(location) != location {
            self.more.push((key, location));
        }
    }

    /// Where the digest may be, the newest first.
    pub(super) fn candidates(&self, key: u64) -> Vec<Location> {
        let more = self.more.iter().rev().filter(|(other, _)| *other == key).map(|(_, location)| *location);
        more.chain(self.first.get(&key).copied()).collect()
    }

    pub(super) fn remove(&mut self, key: u64, location: Location) {
        let before = self.more.len();
        self.more.retain(|entry| *entry != (key, location));
        if self.more.len() == before && self.first.get(&key) == Some(&location) {
            self.first.remove(&key);
            if let Some(at) = self.more.iter().position(|(other, _)| *other == key) {
                let (_, location) = self.more.swap_remove(at);
                self.first.insert(key, location);
            }
        }
    }
}

/// The key of a digest.
pub(super) fn key(sha256: &[u8; 32]) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|n| sha256[n]))
}

/// The index of one pack: what is in its first bytes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct PackIndex {
    /// How many bytes of the pack it knows.
    pub(super) covers: u64,
    /// Key and offset of each record.
    pub(super) entries: Vec<(u64, u32)>,
}

impl PackIndex {
    /// Reads the file; `None` if there is none, or one that is not whole, which is as good as none: the pack is read instead.
    pub(super) fn read(path: &Path) -> io::Result<Option<Self>> {
        match fs::read(path) {
            Ok(bytes) => Ok(Self::decode(&bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Puts the file in place, whole or not at all as far as the process goes; after a power cut its hash tells.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let temp = path.with_extension("index.new");
        let written = fs::File::create(&temp).and_then(|mut file| file.write_all(&self.encode())).and_then(|()| fs::rename(&temp, path));
        if written.is_err() {
            let _gone_or_not = fs::remove_file(&temp);
        }
        written
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&self.covers.to_le_bytes());
        for (key, offset) in &self.entries {
            bytes.extend_from_slice(&key.to_le_bytes());
            bytes.extend_from_slice(&offset.to_le_bytes());
        }
        let hash = Sha256::digest(&bytes);
        bytes.extend_from_slice(&hash);
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (content, hash) = bytes.split_at_checked(bytes.len().checked_sub(HASH_BYTES)?)?;
        let (covers, entries) = content.strip_prefix(MAGIC)?.split_at_checked(8)?;
        if Sha256::digest(content).as_slice() != hash || entries.len() % ENTRY_BYTES != 0 {
            return None;
        }
        let entry = |bytes: &[u8]| {
            let (key, offset) = bytes.split_at(8);
            Some((u64::from_le_bytes(key.try_into().ok()?), u32::from_le_bytes(offset.try_into().ok()?)))
        };
        Some(Self {
            covers: u64::from_le_bytes(covers.try_into().ok()?),
            entries: entries.chunks_exact(ENTRY_BYTES).map(entry).collect::<Option<_>>()?,
        })
    }
}
