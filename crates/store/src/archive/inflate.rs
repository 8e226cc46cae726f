//! Inflates entries one after the other with one state and one pair of buffers, counting and summing what comes out.
//!
//! Invariant: never hands on a byte more than the entry declared.

use std::io::{self, Read};

use flate2::{Crc, Decompress, FlushDecompress, Status};
use trainyard_core::{Error, archive::Method};

const BUFFER_BYTES: usize = 32 << 10;

/// What is wrong with an entry.
#[derive(Debug)]
pub(super) enum Broken {
    /// More bytes come out than declared.
    Longer,
    /// Only so many bytes come out.
    Shorter(u64),
    /// The bytes are not those that were packed.
    Checksum,
    /// The compressed stream makes no sense.
    Stream,
    /// The archive cannot be read.
    Io(io::Error),
    /// Whoever took the bytes failed.
    Sink(Error),
}

/// The state that is used again for each entry.
pub(super) struct Inflater {
    input: Box<[u8]>,
    /// Made for the first entry that is compressed: small projects often have none, and each upload would clear its 80 kB.
    deflated: Option<Box<Deflated>>,
}

struct Deflated {
    state: Decompress,
    output: Box<[u8]>,
}

impl Inflater {
    pub(super) fn new() -> Self {
        Self { input: buffer(), deflated: None }
    }

    /// Reads one entry from `raw`, its bytes as they are in the archive, and hands what they stand for to `sink`.
    pub(super) fn run(
        &mut self,
        raw: &mut impl Read,
        method: Method,
        size_bytes: u64,
        checksum: u32,
        sink: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Broken> {
        let mut out = Counted { size_bytes, crc: Crc::new(), count: 0, sink };
        match method {
            Method::Stored => loop {
                match raw.read(&mut self.input).map_err(Broken::Io)? {
                    0 => break,
                    read => out.take(&self.input[..read])?,
                }
            },
            Method::Deflated => self.inflate(raw, &mut out)?,
            Method::Other(_) => return Err(Broken::Stream),
        }
        if out.count < size_bytes {
            Err(Broken::Shorter(out.count))
        } else if out.crc.sum() != checksum {
            Err(Broken::Checksum)
        } else {
            Ok(())
        }
    }

    fn inflate<S: FnMut(&[u8]) -> Result<(), Error>>(&mut self, raw: &mut impl Read, out: &mut Counted<S>) -> Result<(), Broken> {
        let Deflated { state, output } =
            &mut **self.deflated.get_or_insert_with(|| Box::new(Deflated { state: Decompress::new(false), output: buffer() }));
        state.reset(false);
        let mut pending = 0..0;
        loop {
            if pending.is_empty() {
                pending = 0..raw.read(&mut self.input).map_err(Broken::Io)?;
            }
            let at_end = pending.is_empty();
            let (read_before, made_before) = (state.total_in(), state.total_out());
            let status = state.decompress(&self.input[pending.clone()], output, FlushDecompress::None).map_err(|_| Broken::Stream)?;
            pending.start += (state.total_in() - read_before) as usize;
            let made = (state.total_out() - made_before) as usize;
            out.take(&output[..made])?;
            match status {
                Status::StreamEnd => return Ok(()),
                // Nothing more to read and nothing more comes out: the stream lacks its end.
                Status::Ok | Status::BufError if at_end && made == 0 => return Err(Broken::Shorter(out.count)),
                Status::Ok | Status::BufError => {}
            }
        }
    }
}

fn buffer() -> Box<[u8]> {
    vec![0; BUFFER_BYTES].into_boxed_slice()
}

struct Counted<S> {
    size_bytes: u64,
    crc: Crc,
    count: u64,
    sink: S,
}

impl<S: FnMut(&[u8]) -> Result<(), Error>> Counted<S> {
    fn take(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        self.count += bytes.len() as u64;
        if self.count > self.size_bytes {
            return Err(Broken::Longer);
        }
        self.crc.update(bytes);
        (self.sink)(bytes).map_err(Broken::Sink)
    }
}
