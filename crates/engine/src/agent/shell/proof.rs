//! What caller and listener say to each other.
//!
//! The listener begins with a nonce. The caller answers with the length of its request, the request, and the HMAC of nonce and request under the key
//! of the attempt. Then the listener sends frames: a kind, a length, bytes. The bytes are not encrypted, as those of MPI itself are not.

use std::io::{self, Read};

use aws_lc_rs::{hmac, rand};
use serde::{Deserialize, Serialize};

/// What is signed begins with this, so that a proof is good for nothing else.
const DOMAIN: &[u8] = b"trainyard node shell 1\0";

/// Bytes of a nonce.
pub(super) const NONCE_BYTES: usize = 32;

/// Bytes of a proof.
pub(super) const PROOF_BYTES: usize = 32;

/// The longest request that is read. A launcher's line is a few KiB.
pub(super) const MAX_REQUEST_BYTES: u32 = 256 << 10;

/// The longest frame.
pub(super) const MAX_FRAME_BYTES: u32 = 64 << 10;

/// The key that all agents of an attempt have in their orders. Not to be shown.
#[derive(Clone)]
pub(in crate::agent) struct NodeKey(hmac::Key);

/// What a caller asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Request {
    /// The node that it means.
    pub(super) node: u32,
    /// What the node's shell is to do.
    pub(super) line: String,
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// From standard output.
    Output,
    /// From standard error.
    Error,
    /// The exit code, the last one.
    Ended,
}

impl NodeKey {
    /// The key as it stands in an order: hexadecimal digits. `None`: it is none.
    pub(in crate::agent) fn read(text: &str) -> Option<Self> {
        let bytes = hex::decode(text).ok().filter(|bytes| bytes.len() >= PROOF_BYTES)?;
        Some(Self(hmac::Key::new(hmac::HMAC_SHA256, &bytes)))
    }

    /// The proof of somebody who has the key.
    pub(super) fn prove(&self, nonce: &[u8], request: &[u8]) -> [u8; PROOF_BYTES] {
        let tag = hmac::sign(&self.0, &signed(nonce, request));
        tag.as_ref().try_into().expect("an HMAC with SHA-256 has 32 bytes")
    }

    /// Whether it is one, in a time that does not depend on how wrong it is.
    pub(super) fn accepts(&self, nonce: &[u8], request: &[u8], proof: &[u8]) -> bool {
        hmac::verify(&self.0, &signed(nonce, request), proof).is_ok()
    }
}

fn signed(nonce: &[u8], request: &[u8]) -> Vec<u8> {
    [DOMAIN, nonce, request].concat()
}

/// A nonce that was never used before.
pub(super) fn nonce() -> io::Result<[u8; NONCE_BYTES]> {
    let mut nonce = [0; NONCE_BYTES];
    rand::fill(&mut nonce).map_err(|_| io::Error::other("the system gives no random bytes"))?;
    Ok(nonce)
}

/// Everything that a caller sends.
pub(super) fn sent(key: &NodeKey, nonce: &[u8], request: &Request) -> io::Result<Vec<u8>> {
    let request = serde_json::to_vec(request)?;
    let length = u32::try_from(request.len()).ok().filter(|length| *length <= MAX_REQUEST_BYTES);
    let length = length.ok_or_else(|| io::Error::other(format!("the command line has more than {MAX_REQUEST_BYTES} bytes")))?;
    Ok([length.to_be_bytes().as_slice(), &request, &key.prove(nonce, &request)].concat())
}

impl Frame {
    fn number(self) -> u8 {
        match self {
            Self::Output => 1,
            Self::Error => 2,
            Self::Ended => 3,
        }
    }

    /// The frame around some bytes, of which there are at most [`MAX_FRAME_BYTES`].
    pub(super) fn around(self, bytes: &[u8]) -> Vec<u8> {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        [[self.number()].as_slice(), &length.to_be_bytes(), bytes].concat()
    }

    /// The next frame and its bytes.
    pub(super) fn read(from: &mut impl Read) -> io::Result<(Self, Vec<u8>)> {
        let (mut number, mut length) = ([0; 1], [0; 4]);
        from.read_exact(&mut number)?;
        from.read_exact(&mut length)?;
        let kind = [Self::Output, Self::Error, Self::Ended].into_iter().find(|kind| kind.number() == number[0]);
        let length = Some(u32::from_be_bytes(length)).filter(|length| *length <= MAX_FRAME_BYTES);
        let (Some(kind), Some(length)) = (kind, length) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "what the other node sends makes no sense"));
        };
        let mut bytes = vec![0; length as usize];
        from.read_exact(&mut bytes)?;
        Ok((kind, bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_good_for_one_nonce_one_request_and_one_key() {
        let (one, other) = (NodeKey::read(&"5a".repeat(32)).unwrap(), NodeKey::read(&"5b".repeat(32)).unwrap());
        let (nonce, later) = (nonce().unwrap(), nonce().unwrap());
        let proof = one.prove(&nonce, b"true");
        assert!(one.accepts(&nonce, b"true", &proof));
        assert!(!one.accepts(&later, b"true", &proof), "it cannot be used again");
        assert!(!one.accepts(&nonce, b"false", &proof));
        assert!(!other.accepts(&nonce, b"true", &proof));
        assert!(!one.accepts(&nonce, b"true", &proof[..16]));
    }

    #[test]
    fn a_key_has_enough_digits_and_nothing_else() {
        assert!(NodeKey::read("").is_none() && NodeKey::read("5a5a").is_none() && NodeKey::read(&"xy".repeat(32)).is_none());
    }

    #[test]
    fn frames_are_read_as_they_were_written_and_nonsense_is_refused() {
        let bytes = [Frame::Output.around(b"out"), Frame::Error.around(b""), Frame::Ended.around(&7_i32.to_be_bytes())].concat();
        let mut rest = bytes.as_slice();
        assert_eq!(Frame::read(&mut rest).unwrap(), (Frame::Output, b"out".to_vec()));
        assert_eq!(Frame::read(&mut rest).unwrap(), (Frame::Error, Vec::new()));
        assert_eq!(Frame::read(&mut rest).unwrap(), (Frame::Ended, 7_i32.to_be_bytes().to_vec()));
        assert!(Frame::read(&mut rest).is_err(), "the end");
        assert!(Frame::read(&mut [9, 0, 0, 0, 0].as_slice()).is_err());
        assert!(Frame::read(&mut [1, 255, 0, 0, 0].as_slice()).is_err(), "too long to be read");
    }

    #[test]
    fn a_line_that_is_too_long_is_not_sent() {
        let key = NodeKey::read(&"5a".repeat(32)).unwrap();
        let request = Request { node: 1, line: "x".repeat(300 << 10) };
        assert!(sent(&key, &[0; NONCE_BYTES], &request).is_err());
    }
}
