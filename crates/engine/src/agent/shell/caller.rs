//! `trainyard node-shell HOST WORDS…`: what a launcher starts in place of `ssh`. Has the agent of that node do it, and passes on what comes of it.
//!
//! It is in the process tree of the launcher, and ends with it; the other side takes a broken connection for its end.

use std::{
    ffi::OsString,
    fs,
    io::{self, Read as _, Write as _},
    net::{TcpStream, ToSocketAddrs as _},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, ExitCode},
    thread,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    door::keep_alive,
    proof::{Frame, NONCE_BYTES, NodeKey, Request, sent},
};

/// What a remote shell ends with that could do nothing.
const UNREACHABLE: u8 = 255;

/// How long each try to connect may take.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);

/// The listener was there before the launcher was started: only a network that is busy for a moment is tried again.
const TRIES: u32 = 3;

/// Between two tries.
const PAUSE: Duration = Duration::from_secs(1);

/// How long the listener may take for its nonce.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);

/// What the caller has to know, as a file of the agent that started the launcher. Not to be shown: it holds the key.
#[derive(Serialize, Deserialize)]
pub(in crate::agent) struct Directory {
    /// As in the order of the attempt.
    pub(in crate::agent) key: String,
    /// The host that the launcher is on.
    pub(in crate::agent) own: String,
    /// The others.
    pub(in crate::agent) nodes: Vec<Called>,
}

/// A node that can be called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::agent) struct Called {
    /// Its number.
    pub(in crate::agent) node: u32,
    /// What the launcher calls it, and where it is.
    pub(in crate::agent) host: String,
    /// Where its agent listens.
    pub(in crate::agent) port: u16,
}

/// Does what `words` (options of `ssh`, a host, a command line) ask for, with the nodes in the file `nodes`. Gives the exit code of the command; 255
/// where it could not be started, or nobody knows how it ended.
pub fn node_shell(nodes: &Path, words: &[OsString]) -> ExitCode {
    match call(nodes, words) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // The launcher shows it to its user.
            let _ = writeln!(io::stderr(), "trainyard node-shell: {error}");
            ExitCode::from(UNREACHABLE)
        }
    }
}

fn call(nodes: &Path, words: &[OsString]) -> io::Result<u8> {
    let about = |what: String| move |error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"));
    let (host, line) = asked(words)?;
    let text = fs::read(nodes).map_err(about(format!("the list of nodes `{}` cannot be read", nodes.display())))?;
    let directory: Directory = serde_json::from_slice(&text)?;
    let Some(called) = directory.nodes.iter().find(|called| called.host == host) else {
        if directory.own == host {
            return Err(Command::new("/bin/sh").args(["-c", &line]).exec());
        }
        let known: Vec<&str> = directory.nodes.iter().map(|called| called.host.as_str()).collect();
        return Err(io::Error::other(format!("`{host}` is no node of this run; its nodes are {}, {}", directory.own, known.join(", "))));
    };
    let key = NodeKey::read(&directory.key).ok_or_else(|| io::Error::other("the key of the attempt is damaged"))?;
    let name = format!("node {} ({host}, port {})", called.node, called.port);
    let mut stream = connect(called).map_err(about(format!("the agent of {name} cannot be reached")))?;
    let talked = talk(&mut stream, &key, &Request { node: called.node, line });
    talked.map_err(about(format!("the connection to {name} was lost, and what it did was ended")))
}

/// Host and command line among the words that would be `ssh`'s: options come first, and what follows the host is one line for a shell.
fn asked(words: &[OsString]) -> io::Result<(String, String)> {
    /// Options with a value of their own.
    const VALUED: [&str; 6] = ["-l", "-o", "-p", "-i", "-F", "-S"];
    let mut words = words.iter().map(|word| word.to_str().ok_or_else(|| io::Error::other("a word of the command line is not UTF-8")));
    let host = loop {
        let word = words.next().unwrap_or_else(|| Err(io::Error::other("no host is named")))?;
        if VALUED.contains(&word) {
            words.next();
        } else if !word.starts_with('-') {
            break word;
        }
    };
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    let line = words.collect::<io::Result<Vec<_>>>()?.join(" ");
    if line.trim().is_empty() {
        return Err(io::Error::other("no command is named; there is no interactive shell on a node"));
    }
    Ok((host.to_owned(), line))
}

fn connect(called: &Called) -> io::Result<TcpStream> {
    let mut last = io::Error::other("its host has no address");
    for attempt in 0..TRIES {
        if attempt > 0 {
            thread::sleep(PAUSE);
        }
        for address in (called.host.as_str(), called.port).to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, CONNECT_PATIENCE) {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
    }
    Err(last)
}

/// Asks, and passes on what comes until the end. Gives the exit code.
fn talk(stream: &mut TcpStream, key: &NodeKey, request: &Request) -> io::Result<u8> {
    stream.set_nodelay(true)?;
    keep_alive(&*stream)?;
    stream.set_read_timeout(Some(ANSWER_PATIENCE))?;
    let mut nonce = [0; NONCE_BYTES];
    stream.read_exact(&mut nonce)?;
    stream.set_read_timeout(None)?;
    stream.write_all(&sent(key, &nonce, request)?)?;
    loop {
        match Frame::read(stream)? {
            (Frame::Output, bytes) => pass_on(&mut io::stdout().lock(), &bytes),
            (Frame::Error, bytes) => pass_on(&mut io::stderr().lock(), &bytes),
            (Frame::Ended, bytes) => {
                let code = bytes.try_into().map(i32::from_be_bytes).unwrap_or(i32::from(UNREACHABLE));
                return Ok(u8::try_from(code).unwrap_or(UNREACHABLE));
            }
        }
    }
}

/// Where nobody listens any more the command goes on all the same, as under `ssh`.
fn pass_on(to: &mut impl io::Write, bytes: &[u8]) {
    let _ = to.write_all(bytes).and_then(|()| to.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked_of(words: &[&str]) -> Option<(String, String)> {
        asked(&words.iter().map(OsString::from).collect::<Vec<_>>()).ok()
    }

    #[test]
    fn the_words_are_those_of_ssh() {
        let pair = |host: &str, line: &str| Some((host.to_owned(), line.to_owned()));
        assert_eq!(asked_of(&["10.0.0.7", "orted", "-mca", "x \"1\""]), pair("10.0.0.7", "orted -mca x \"1\""), "Open MPI");
        assert_eq!(
            asked_of(&["-x", "10.0.0.7", "\"/b/hydra_pmi_proxy\"", "--id", "1"]),
            pair("10.0.0.7", "\"/b/hydra_pmi_proxy\" --id 1"),
            "MPICH"
        );
        assert_eq!(asked_of(&["-q", "-x", "-l", "me", "you@h", "true"]), pair("h", "true"), "Intel MPI");
        assert_eq!(asked_of(&["-x"]), None);
        assert_eq!(asked_of(&["h"]), None, "there is nobody to talk to");
    }
}
