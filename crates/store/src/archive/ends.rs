//! Where an archive ends, judged before the zip crate reads it: that crate searches where we refuse, and reserves memory for as
//! many entries as a zip64 end record claims.

use std::io::{self, Read, Seek, SeekFrom};

use trainyard_core::{Error, ErrorKind, Result};

use crate::blobs::storage_error;

const END: &[u8; 4] = b"PK\x05\x06";
const END_BYTES: usize = 22;
const LOCATOR: &[u8; 4] = b"PK\x06\x07";
const LOCATOR_BYTES: usize = 20;
const MOST_COMMENT_BYTES: usize = 0xffff;

/// What the end of a file looks like.
enum End {
    /// A zip's.
    Zip,
    /// A zip's that counts in 64 bits.
    Zip64,
    /// There is no end record, but the file begins as a zip does.
    CutOff,
    /// There is no end record.
    Foreign,
    /// There are no bytes.
    Empty,
}

/// Refuses what does not end as a zip of less than 65,535 entries and 4 GiB does.
pub(super) fn check(reader: &mut (impl Read + Seek)) -> Result<()> {
    let (kind, why) = match find(reader).map_err(|error| storage_error("the uploaded zip cannot be read", error))? {
        End::Zip => return Ok(()),
        End::Zip64 => {
            (ErrorKind::TooLarge, "the zip is in the zip64 format, for over 65,534 entries or 4 GiB; a snapshot may not have as much")
        }
        End::CutOff => (
            ErrorKind::Invalid,
            "the zip is truncated: it begins like one but its end, with the directory of its entries, is missing; send it again",
        ),
        End::Foreign => (ErrorKind::Invalid, "this is not a zip archive; send the project folder packed as a .zip"),
        End::Empty => (ErrorKind::Invalid, "the zip is empty: it has no bytes"),
    };
    Err(Error::new(kind, why))
}

fn find(reader: &mut (impl Read + Seek)) -> io::Result<End> {
    let length = reader.seek(SeekFrom::End(0))?;
    if length == 0 {
        return Ok(End::Empty);
    }
    if is_plain(reader, length)? {
        return Ok(End::Zip);
    }
    let tail = read_at(reader, length.saturating_sub((LOCATOR_BYTES + END_BYTES + MOST_COMMENT_BYTES) as u64), length)?;
    let mut found = None;
    // All of them: where one makes no sense, the zip crate goes on to the one before.
    for at in (0..tail.len().saturating_sub(END_BYTES - 1)).filter(|at| tail[*at..].starts_with(END)) {
        let located = at >= LOCATOR_BYTES && tail[at - LOCATOR_BYTES..].starts_with(LOCATOR);
        if located && overflows(&tail[at..at + END_BYTES]) {
            return Ok(End::Zip64);
        }
        found = Some(End::Zip);
    }
    if let Some(found) = found {
        return Ok(found);
    }
    Ok(if read_at(reader, 0, length.min(4))? == b"PK\x03\x04" { End::CutOff } else { End::Foreign })
}

/// Whether the file ends as nearly every tool writes it: with an end record without a comment, right behind the directory that
/// it names. The zip crate looks at no other record then, and neither need we.
fn is_plain(reader: &mut (impl Read + Seek), length: u64) -> io::Result<bool> {
    let Some(at) = length.checked_sub(END_BYTES as u64) else { return Ok(false) };
    let end = read_at(reader, at, length)?;
    let number = |at: usize| u64::from(u32::from_le_bytes([end[at], end[at + 1], end[at + 2], end[at + 3]]));
    let (directory_bytes, directory_at) = (number(12), number(16));
    let of_one_disk = end[4..8] == [0; 4] && end[8..10] == end[10..12];
    if !end.starts_with(END) || !of_one_disk || overflows(&end) || end[20..] != [0; 2] || directory_at + directory_bytes != at {
        return Ok(false);
    }
    Ok(directory_bytes != 0 && read_at(reader, directory_at, directory_at + 4)? == b"PK\x01\x02")
}

/// Whether a field of the end record is at its most, which means that the truth is in a zip64 record.
fn overflows(end: &[u8]) -> bool {
    end[10..12] == [0xff; 2] || end[12..16] == [0xff; 4] || end[16..20] == [0xff; 4]
}

/// The bytes `from..to`, as far as they are there.
fn read_at(reader: &mut (impl Read + Seek), from: u64, to: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity((to - from) as usize);
    reader.seek(SeekFrom::Start(from))?;
    reader.by_ref().take(to - from).read_to_end(&mut bytes)?;
    Ok(bytes)
}
