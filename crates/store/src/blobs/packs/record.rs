//! The form of a pack: records one after the other, each a header of 48 bytes and the content of one blob.

use std::{fs::File, io, os::unix::fs::FileExt as _};

use sha2::{Digest as _, Sha256};
use trainyard_core::ids::Digest;

/// Bytes before the content: eight that say what it is, its length (little-endian), its SHA-256.
pub(super) const HEADER_BYTES: u64 = 48;

const BLOB: &[u8; 8] = b"TYblob1\n";
const GONE: &[u8; 8] = b"TYgone1\n";

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) sha256: [u8; 32],
    /// Bytes of content that follow.
    pub(super) size: u64,
    pub(super) state: State,
}

/// Whether a record is still a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Blob,
    /// It was deleted: only its length counts, by which the next record is found.
    Gone,
}

impl Header {
    pub(super) fn of(digest: &Digest, content: &[u8]) -> Self {
        Self { sha256: sha256(digest), size: content.len() as u64, state: State::Blob }
    }

    pub(super) fn encode(&self) -> [u8; HEADER_BYTES as usize] {
        let mut bytes = [0; HEADER_BYTES as usize];
        bytes[..8].copy_from_slice(match self.state {
            State::Blob => BLOB,
            State::Gone => GONE,
        });
        bytes[8..16].copy_from_slice(&self.size.to_le_bytes());
        bytes[16..].copy_from_slice(&self.sha256);
        bytes
    }

    /// `None` for bytes that are no header.
    fn decode(bytes: &[u8; HEADER_BYTES as usize]) -> Option<Self> {
        let (kind, rest) = bytes.split_at(8);
        let (size, sha256) = rest.split_at(8);
        let state = match kind {
            _ if kind == BLOB => State::Blob,
            _ if kind == GONE => State::Gone,
            _ => return None,
        };
        Some(Self { sha256: sha256.try_into().ok()?, size: u64::from_le_bytes(size.try_into().ok()?), state })
    }

    /// The header at `offset`; `None` if there is none, the end of the file included.
    pub(super) fn read(pack: &File, offset: u64) -> io::Result<Option<Self>> {
        let mut bytes = [0; HEADER_BYTES as usize];
        match pack.read_exact_at(&mut bytes, offset) {
            Ok(()) => Ok(Self::decode(&bytes)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the bytes behind the header at `offset` are the content that it speaks of.
    pub(super) fn holds(&self, pack: &File, offset: u64) -> io::Result<bool> {
        let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 64 << 10]);
        let (mut at, mut left) = (offset + HEADER_BYTES, self.size);
        while left > 0 {
            let piece = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            match pack.read_exact_at(&mut buffer[..piece], at) {
                Ok(()) => hasher.update(&buffer[..piece]),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
                Err(error) => return Err(error),
            }
            at += piece as u64;
            left -= piece as u64;
        }
        Ok(hasher.finalize().as_slice() == self.sha256)
    }

    /// Where the record after this one at `offset` begins; `None` for a length that no file can have.
    pub(super) fn next(&self, offset: u64) -> Option<u64> {
        offset.checked_add(HEADER_BYTES)?.checked_add(self.size)
    }

    pub(super) fn digest(&self) -> Digest {
        Digest::new(hex::encode(self.sha256)).expect("32 bytes in hexadecimal are a digest")
    }
}

/// The bytes of a digest.
pub(super) fn sha256(digest: &Digest) -> [u8; 32] {
    let mut bytes = [0; 32];
    hex::decode_to_slice(digest.as_str(), &mut bytes).expect("a digest is 64 hexadecimal digits");
    bytes
}
