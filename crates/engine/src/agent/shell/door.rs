//! The side that is called: listens, checks the proof, and carries what a command writes, and its end, to the caller.
//!
//! Whoever comes has little time and little room before the proof: [`HANDSHAKE`], a request of bounded length, and [`STRANGERS`] of them at once. What is
//! wrong is a line in the log, and the end of the connection.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use rustix::net::sockopt;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
        unix::pipe,
    },
    sync::{Semaphore, mpsc, oneshot},
    task::JoinSet,
    time::timeout,
};

use super::proof::{Frame, MAX_FRAME_BYTES, MAX_REQUEST_BYTES, NodeKey, PROOF_BYTES, Request, nonce};
use crate::agent::ports::{self, Reserved};

/// Where agents listen for their callers, the first free one from here on.
const FIRST_PORT: u16 = 6305;

/// How long somebody may take to prove who it is.
const HANDSHAKE: Duration = Duration::from_secs(20);

/// Connections at once that have proved nothing yet.
const STRANGERS: usize = 64;

/// Between two tries to take a connection when there are too many open files, say.
const PAUSE: Duration = Duration::from_millis(200);

/// How long what a command wrote may take to come after its end: its orphans may hold the pipes for ever.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// After how much silence the kernel asks whether the other machine is still there, how often it asks again, and how many times.
const KEEP_ALIVE: (Duration, Duration, u32) = (Duration::from_secs(30), Duration::from_secs(10), 6);

/// Somebody of the attempt asks for a command.
pub(in crate::agent) struct Asked {
    /// For `/bin/sh -c`.
    pub(in crate::agent) line: String,
    /// Takes what was started, or why nothing was.
    pub(in crate::agent) answer: oneshot::Sender<Result<Guest, String>>,
}

/// A command that was started for a caller.
pub(in crate::agent) struct Guest {
    /// What it writes to standard output and to standard error.
    pub(in crate::agent) outputs: (OwnedFd, OwnedFd),
    /// Resolves with the exit code.
    pub(in crate::agent) ended: oneshot::Receiver<i32>,
    /// Is closed by the caller's end, or by its own.
    pub(in crate::agent) wanted: oneshot::Sender<()>,
}

/// A port on which callers are waited for.
pub(in crate::agent) struct Door {
    listener: TcpListener,
    port: u16,
    _reserved: Vec<Reserved>,
}

impl Door {
    /// Listens at the address `host` of this machine (at all of them if it is none), on the port that was told the others already, if one was.
    pub(in crate::agent) async fn open(host: &str, told: Option<u16>) -> io::Result<Self> {
        let reserved = match told {
            Some(port) => ports::reserve_again(&[port]),
            None => ports::reserve(FIRST_PORT, 1),
        };
        let port = told.or(reserved.first().map(|reserved| reserved.port));
        let port = port.ok_or_else(|| io::Error::other("no port is free on which the other nodes could reach this agent"))?;
        let address = host.parse().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let listener = match TcpListener::bind((address, port)).await {
            // Other nodes reach it there all the same, behind a translation of addresses.
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await,
            result => result,
        };
        let listener = listener.map_err(|error| io::Error::new(error.kind(), format!("port {port} of {address}: {error}")))?;
        Ok(Self { listener, port, _reserved: reserved })
    }

    /// Where it listens.
    pub(in crate::agent) fn port(&self) -> u16 {
        self.port
    }

    /// Lets in who proves to have `key` and means `node`, and hands on what it asks for. Until the future is dropped, which ends all connections.
    pub(in crate::agent) async fn keep(&self, (node, key): (u32, &NodeKey), asks: &mpsc::Sender<Asked>) -> Infallible {
        let strangers = Arc::new(Semaphore::new(STRANGERS));
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                Some(_) = connections.join_next() => continue,
            };
            let (stream, from) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection of another node cannot be taken");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let Ok(room) = Arc::clone(&strangers).try_acquire_owned() else {
                tracing::warn!(%from, "there are too many connections that have proved nothing; this one is closed");
                continue;
            };
            let (key, asks) = (key.clone(), asks.clone());
            connections.spawn(async move {
                let admitted = timeout(HANDSHAKE, admit(stream, (node, &key))).await;
                drop(room);
                match admitted.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                    Ok((line, stream)) => attend(line, stream, &asks).await,
                    Err(error) => tracing::warn!(%from, %error, "a connection was closed: it did not prove that it is of this attempt"),
                }
            });
        }
    }
}

/// Asks the kernel to notice when the other machine is gone, without a word.
pub(super) fn keep_alive(socket: impl AsFd) -> io::Result<()> {
    let (idle, interval, count) = KEEP_ALIVE;
    sockopt::set_socket_keepalive(&socket, true)?;
    sockopt::set_tcp_keepidle(&socket, idle)?;
    sockopt::set_tcp_keepintvl(&socket, interval)?;
    sockopt::set_tcp_keepcnt(&socket, count)?;
    Ok(())
}

/// Checks the proof. Gives the line that is asked for.
async fn admit(mut stream: TcpStream, (node, key): (u32, &NodeKey)) -> io::Result<(String, TcpStream)> {
    stream.set_nodelay(true)?;
    keep_alive(&stream)?;
    let nonce = nonce()?;
    stream.write_all(&nonce).await?;
    let length = stream.read_u32().await?;
    if length > MAX_REQUEST_BYTES {
        return Err(io::Error::other(format!("its request would have {length} bytes")));
    }
    let (mut request, mut proof) = (vec![0; length as usize], [0; PROOF_BYTES]);
    stream.read_exact(&mut request).await?;
    stream.read_exact(&mut proof).await?;
    if !key.accepts(&nonce, &request, &proof) {
        return Err(io::Error::other("its proof is wrong"));
    }
    let request: Request = serde_json::from_slice(&request)?;
    if request.node != node {
        return Err(io::Error::other(format!("it means node {}, and this is node {node}", request.node)));
    }
    Ok((request.line, stream))
}

/// Has the line done, and carries what comes of it until the end of either side.
async fn attend(line: String, stream: TcpStream, asks: &mpsc::Sender<Asked>) {
    let (answer, answered) = oneshot::channel();
    if asks.send(Asked { line, answer }).await.is_err() {
        return;
    }
    let (reader, mut writer) = stream.into_split();
    let carried = match answered.await {
        Ok(Ok(guest)) => carry(guest, reader, &mut writer).await,
        Ok(Err(refused)) => refuse(&refused, &mut writer).await,
        Err(_) => return,
    };
    if let Err(error) = carried {
        tracing::info!(%error, "the connection of another node ended before its command did");
    }
}

async fn refuse(why: &str, writer: &mut OwnedWriteHalf) -> io::Result<()> {
    let mut bytes = why.as_bytes().to_vec();
    bytes.truncate(MAX_FRAME_BYTES as usize - 1);
    bytes.push(b'\n');
    writer.write_all(&Frame::Error.around(&bytes)).await?;
    writer.write_all(&Frame::Ended.around(&126_i32.to_be_bytes())).await
}

/// `Err`: the caller is gone, and dropping `guest.wanted` says so.
async fn carry(guest: Guest, mut reader: OwnedReadHalf, writer: &mut OwnedWriteHalf) -> io::Result<()> {
    let Guest { outputs, mut ended, wanted: _wanted } = guest;
    let (mut output, mut errors) = (Source::new(outputs.0)?, Source::new(outputs.1)?);
    let mut end = None;
    let mut nothing = [0; 64];
    while end.is_none() || output.is_open() || errors.is_open() {
        let is_over = end.is_some();
        tokio::select! {
            biased;
            bytes = output.next(), if output.is_open() => send(Frame::Output, &bytes, writer).await?,
            bytes = errors.next(), if errors.is_open() => send(Frame::Error, &bytes, writer).await?,
            // Nothing is expected of it but its end.
            read = reader.read(&mut nothing) => if read? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            },
            code = &mut ended, if !is_over => end = Some(code.unwrap_or(255)),
            () = tokio::time::sleep(LAST_WORDS), if is_over => break,
        }
    }
    writer.write_all(&Frame::Ended.around(&end.unwrap_or(255).to_be_bytes())).await?;
    writer.shutdown().await
}

async fn send(frame: Frame, bytes: &[u8], writer: &mut OwnedWriteHalf) -> io::Result<()> {
    if bytes.is_empty() { Ok(()) } else { writer.write_all(&frame.around(bytes)).await }
}

/// One of the two things that a command writes to.
struct Source {
    /// `None`: it is closed.
    pipe: Option<pipe::Receiver>,
    buffer: Vec<u8>,
}

impl Source {
    fn new(pipe: OwnedFd) -> io::Result<Self> {
        Ok(Self { pipe: Some(pipe::Receiver::from_owned_fd(pipe)?), buffer: vec![0; MAX_FRAME_BYTES as usize / 4] })
    }

    fn is_open(&self) -> bool {
        self.pipe.is_some()
    }

    /// The next bytes; none once it is closed. Cancel-safe.
    async fn next(&mut self) -> Vec<u8> {
        let Some(pipe) = &mut self.pipe else { return Vec::new() };
        match pipe.read(&mut self.buffer).await {
            Ok(count) if count > 0 => self.buffer[..count].to_vec(),
            Ok(_) | Err(_) => {
                self.pipe = None;
                Vec::new()
            }
        }
    }
}
