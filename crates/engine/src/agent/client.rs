//! The server as the agent sees it: typed calls that are repeated until the server answers.
//!
//! A server that is away, restarting, overloaded or of another version is waited for, however long: the order in the folder is read again on
//! every failure, because a server that came back may listen elsewhere, and because a token that ended meanwhile is
//! replaced there. Only a server that says that this attempt is not wanted any more raises [`Demand::Abandon`], and from then on every call gives [`Refusal::Abandoned`].

use std::{
    fmt, fs, io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Body, RequestBuilder, Response, StatusCode};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::io::ReaderStream;
use trainyard_core::Result;
use trainyard_wire::native::{
    AGENT_PROTOCOL, AttemptOrder, ErrorBody, FreshToken, Instruction, LogLength, NodePhase, NodeWord, Nodes, Report, Seal,
};

use super::{
    connection::Connection,
    control::{Control, Demand},
    folder::AttemptFolder,
};
use crate::clock::now_us;

/// The longest that the first and any later pause between two tries of a call may be.
const RETRY_PAUSE: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(4));

/// Between two lines in the log about a server that does not speak this agent's protocol.
const PROTOCOL_REMINDER: Duration = Duration::from_secs(60);

/// Seconds that the server is asked to keep the question for instructions open.
const LONG_POLL_SECONDS: u64 = 20;

/// For answers to small requests.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Bytes of a file that are read at a time for an upload.
const UPLOAD_CHUNK_BYTES: usize = 128 << 10;

/// What stays as it is in a path of artifacts; `/` separates.
const PATH_SET: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A call that will not succeed by being repeated.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The attempt was given up.
    Abandoned,
    /// The server says no.
    Refused {
        /// Its status.
        status: StatusCode,
        /// Its sentence.
        message: String,
    },
    /// Something on this machine is in the way.
    Local(io::Error),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Abandoned => f.write_str("the attempt was given up"),
            Self::Refused { status, message } => write!(f, "the server answered {}: {message}", status.as_u16()),
            Self::Local(error) => write!(f, "{error}"),
        }
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Local(error)
    }
}

/// Answer to a log operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LogAnswer {
    /// Done. For an append: how many bytes the server holds now.
    Done(Option<u64>),
    /// It does not fit what the server holds, which has this length.
    Holds(u64),
}

/// Where in a log some bytes belong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Position {
    /// At this offset; what the server holds before it stays.
    At(u64),
    /// At the start, and what the server holds is forgotten first.
    Replacing,
}

/// What a node tells the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) host: String,
    pub(super) ports: Vec<u16>,
    pub(super) phase: NodePhase,
    /// What ended it, and when, microseconds since the epoch by this machine's clock.
    pub(super) end: Option<(serde_json::Value, i64)>,
}

/// One server, one attempt.
pub(super) struct Client {
    folder: AttemptFolder,
    control: Arc<Control>,
    connection: Mutex<Arc<Connection>>,
    /// Until the first answer one call goes at a time: the others find its HTTP/2 connection instead of making one each.
    first: tokio::sync::Mutex<()>,
    answered: watch::Sender<bool>,
    /// When the log last said that the protocols do not fit.
    misfit_said: Mutex<Option<Instant>>,
}

impl Client {
    /// A client for the server and the attempt of `order`, which it reads again from `folder` when the server can't be reached.
    pub(super) fn new(order: &AttemptOrder, folder: AttemptFolder, control: Arc<Control>) -> Result<Self> {
        let connection = Arc::new(Connection::new((order, folder.node()), None)?);
        let (first, answered) = (tokio::sync::Mutex::new(()), watch::Sender::new(false));
        Ok(Self { folder, control, connection: Mutex::new(connection), first, answered, misfit_said: Mutex::default() })
    }

    /// The token for the user's code, and when it ends, in seconds since the epoch.
    pub(super) fn token(&self) -> (String, i64) {
        let connection = self.connection();
        (connection.token.clone(), connection.token_expires_on)
    }

    /// Tells what the agent does.
    pub(super) async fn report(&self, report: &Report) -> Result<Instruction, Refusal> {
        let answer = self.call(|connection| Ok(connection.post("report").json(report).timeout(ANSWER_TIMEOUT))).await;
        self.or_unknown(answer)?.json()
    }

    /// Where the server is.
    pub(super) fn endpoint(&self) -> String {
        self.connection().endpoint.clone()
    }

    /// Tells the other nodes of the attempt how this one is, and hears how they are.
    pub(super) async fn tell_node(&self, word: &Word) -> Result<Nodes, Refusal> {
        let path = format!("nodes/{}", self.folder.node());
        let build = |connection: &Connection| {
            let (cause, at_us) = word.end.clone().map_or((None, None), |(cause, at_us)| (Some(cause), Some(at_us)));
            // Clocks of machines differ; how long ago it was is known here, also after hours without a server.
            let ended_ago_us = at_us.map(|at_us| now_us().saturating_sub(at_us).max(0));
            let word = NodeWord { host: word.host.clone(), ports: word.ports.clone(), phase: word.phase, cause, ended_ago_us };
            Ok(connection.post(&path).json(&word).timeout(ANSWER_TIMEOUT))
        };
        let answer = self.call(build).await;
        self.or_unknown(answer)?.json()
    }

    /// Waits until more was said than `after`, or for a while; gives what all nodes have said.
    pub(super) async fn nodes(&self, after: u64) -> Result<Nodes, Refusal> {
        let path = format!("nodes?after={after}&wait={LONG_POLL_SECONDS}");
        let timeout = ANSWER_TIMEOUT + Duration::from_secs(LONG_POLL_SECONDS);
        let answer = self.call(|connection| Ok(connection.get(&path).timeout(timeout))).await;
        self.or_unknown(answer)?.json()
    }

    /// Which node of the attempt this is.
    pub(super) fn node(&self) -> u32 {
        self.folder.node()
    }

    /// Resolves once the server has answered anything.
    pub(super) async fn answered(&self) {
        // The sender lives in `self`, so the channel can't close while somebody waits.
        let _ = self.answered.subscribe().wait_for(|answered| *answered).await;
    }

    /// Waits for something to do; [`trainyard_wire::native::Command::Continue`] when there was nothing for a while.
    pub(super) async fn instruction(&self) -> Result<Instruction, Refusal> {
        let path = format!("instruction?wait={LONG_POLL_SECONDS}");
        let timeout = ANSWER_TIMEOUT + Duration::from_secs(LONG_POLL_SECONDS);
        let answer = self.call(|connection| Ok(connection.get(&path).timeout(timeout))).await;
        self.or_unknown(answer)?.json()
    }

    /// Gets a new token before the present one ends, for ever.
    pub(super) async fn keep_token_fresh(&self) {
        loop {
            let (_, expires_on) = self.token();
            let left = u64::try_from(expires_on - now_us() / 1_000_000).unwrap_or(0);
            // At two thirds of what is left, so that hours of failing calls still end in time.
            tokio::time::sleep(Duration::from_secs((left * 2 / 3).max(5))).await;
            match self.call(|connection| Ok(connection.get("token").timeout(ANSWER_TIMEOUT))).await.and_then(Answer::json::<FreshToken>) {
                Ok(fresh) => self.replace(|present| present.with_token(fresh.token, fresh.expires_on)),
                Err(Refusal::Abandoned) => return,
                Err(refusal) => tracing::warn!(%refusal, "no fresh token"),
            }
        }
    }

    /// Adds `bytes` to the log `path` of the run.
    pub(super) async fn append_log(&self, path: &str, position: Position, bytes: bytes::Bytes) -> Result<LogAnswer, Refusal> {
        let query = match position {
            Position::At(offset) => format!("offset={offset}"),
            Position::Replacing => "offset=0&truncate=true".into(),
        };
        let path = format!("logs/{}?{query}", encode(path));
        let build = |connection: &Connection| Ok(octets(connection.put(&path)).timeout(ANSWER_TIMEOUT).body(bytes.clone()));
        let answer = self.call(build).await?;
        answer.log_answer()
    }

    /// Says that the log `path` is complete. A server that has never heard of the log holds nothing of it.
    pub(super) async fn seal_log(&self, path: &str, seal: &Seal) -> Result<LogAnswer, Refusal> {
        let path = format!("logs/{}/seal", encode(path));
        // No timeout: the server stores the log for good, which takes as long as the log is big.
        match self.call(|connection| Ok(connection.post(&path).json(seal))).await {
            Ok(answer) if answer.status == StatusCode::CONFLICT => answer.log_answer(),
            Ok(_) => Ok(LogAnswer::Done(None)),
            Err(Refusal::Refused { status: StatusCode::NOT_FOUND, .. }) => Ok(LogAnswer::Holds(0)),
            Err(refusal) => Err(refusal),
        }
    }

    /// Stores the first `length` bytes of `file`, whose SHA-256 is `sha256`, as the artifact `path` of the run.
    pub(super) async fn upload_output(&self, path: &str, file: &Path, length: u64, sha256: &str) -> Result<(), Refusal> {
        let path = format!("outputs/{}", encode(path));
        let build = |connection: &Connection| {
            let reader = tokio::fs::File::from_std(fs::File::open(file)?);
            let stream = ReaderStream::with_capacity(tokio::io::AsyncReadExt::take(reader, length), UPLOAD_CHUNK_BYTES);
            let request = octets(connection.put(&path)).header("x-trainyard-sha256", sha256).header("content-length", length);
            Ok(request.body(Body::wrap_stream(stream)))
        };
        match self.call(build).await? {
            Answer { status: StatusCode::CONFLICT, body } => Err(refused(StatusCode::CONFLICT, &body)),
            _ => Ok(()),
        }
    }

    /// The snapshot's bytes, once from the start; a broken stream is the caller's to begin again.
    pub(super) async fn snapshot(&self) -> Result<Response, Refusal> {
        self.respond(|connection| Ok(connection.get("snapshot"))).await
    }

    /// Waits the way a call waits between two tries: at random up to a limit that grows with each. A server that comes back finds its agents
    /// one after the other, not a thousand at once that all lost it at the same instant.
    pub(super) async fn pause(&self, pause: &mut Option<Duration>) -> Result<(), Refusal> {
        let limit = pause.map_or(RETRY_PAUSE.0, |last| (last * 2).min(RETRY_PAUSE.1));
        *pause = Some(limit);
        let next = limit.mul_f64(f64::from(uuid::Uuid::new_v4().as_fields().0) / f64::from(u32::MAX));
        tokio::select! {
            () = self.control.abandoned() => Err(Refusal::Abandoned),
            () = tokio::time::sleep(next) => Ok(()),
        }
    }

    fn connection(&self) -> Arc<Connection> {
        Arc::clone(&self.connection.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn replace(&self, change: impl FnOnce(&Connection) -> Connection) {
        let mut present = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        *present = Arc::new(change(&present));
    }

    /// Takes over an order that a server wrote since. `refused`: the token that the server has just refused.
    fn read_order_again(&self, refused: Option<&str>) {
        let order = match self.folder.read_order() {
            Ok(order) => order,
            Err(error) => return tracing::warn!(%error, "the order cannot be read again"),
        };
        let present = self.connection();
        // The agent's own token may be fresher than the order's, unless it is good for nothing: a server with other keys, or one that gives
        // tokens for a shorter time, has written one that ends earlier.
        let newer =
            order.token_expires_on > present.token_expires_on || (refused == Some(present.token.as_str()) && order.token != present.token);
        if !newer && order.endpoint == present.endpoint && order.ca_pem == present.ca_pem {
            return;
        }
        match Connection::new((&order, self.folder.node()), Some(&present)) {
            Ok(connection) => {
                tracing::info!(endpoint = order.endpoint, "taking over a new order");
                let connection = if newer { connection } else { connection.with_token(present.token.clone(), present.token_expires_on) };
                self.replace(|_| connection);
            }
            Err(error) => tracing::warn!(error = error.chain(), "the new order cannot be used"),
        }
    }

    /// A server that does not know the attempt has given it up.
    fn or_unknown(&self, answer: Result<Answer, Refusal>) -> Result<Answer, Refusal> {
        if let Err(Refusal::Refused { status: StatusCode::NOT_FOUND, message }) = &answer {
            tracing::warn!(message, "the server does not know this attempt");
            self.control.raise(Demand::Abandon);
            return Err(Refusal::Abandoned);
        }
        answer
    }

    /// Repeats a request until there is a whole answer. 409 counts as one.
    async fn call(&self, build: impl Fn(&Connection) -> io::Result<RequestBuilder>) -> Result<Answer, Refusal> {
        let mut pause = None;
        loop {
            let response = self.respond(&build).await?;
            let status = response.status();
            match response.bytes().await {
                Ok(body) => return Ok(Answer { status, body }),
                Err(error) => tracing::warn!(error = chain(&error), "the server's answer broke off"),
            }
            self.pause(&mut pause).await?;
        }
    }

    /// Repeats a request until the server has begun to answer with something else than "later".
    async fn respond(&self, build: impl Fn(&Connection) -> io::Result<RequestBuilder>) -> Result<Response, Refusal> {
        let mut pause = None;
        loop {
            let mut refused_token = None;
            if self.control.now() == Demand::Abandon {
                return Err(Refusal::Abandoned);
            }
            let turn = if *self.answered.borrow() { None } else { Some(self.first.lock().await) };
            let connection = self.connection();
            let request = build(&connection)?.bearer_auth(&connection.token);
            let sent = tokio::select! {
                () = self.control.abandoned() => return Err(Refusal::Abandoned),
                sent = request.send() => sent,
            };
            drop(turn);
            match sent {
                Ok(response) => match judge(response.status()) {
                    Verdict::Answer => {
                        if pause.is_some() {
                            tracing::info!("the server answers again");
                        }
                        self.answered.send_replace(true);
                        return Ok(response);
                    }
                    Verdict::Later => log_first(pause, || format!("the server answered {}", response.status())),
                    Verdict::Token => {
                        log_first(pause, || "the server refused the token; a new one has to come with the order".into());
                        refused_token = Some(connection.token.as_str());
                    }
                    Verdict::Misfit => self.say_misfit(&response.bytes().await.unwrap_or_default()),
                    Verdict::Abandoned => {
                        tracing::warn!(status = %response.status(), "the server takes nothing more from this attempt");
                        self.control.raise(Demand::Abandon);
                    }
                    Verdict::No => {
                        let status = response.status();
                        return Err(refused(status, &response.bytes().await.unwrap_or_default()));
                    }
                },
                Err(error) => log_first(pause, || chain(&error)),
            }
            self.pause(&mut pause).await?;
            self.read_order_again(refused_token);
        }
    }

    /// The server does not speak this agent's protocol. Another one may come: the code runs on, and everything waits in the folder.
    fn say_misfit(&self, body: &[u8]) {
        let mut said = self.misfit_said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.is_none_or(|at| at.elapsed() >= PROTOCOL_REMINDER) {
            *said = Some(Instant::now());
            let reason = refused(StatusCode::UPGRADE_REQUIRED, body);
            tracing::error!(%reason, protocol = AGENT_PROTOCOL, "the server does not take this agent's version; trying until another one does");
        }
    }
}

/// What a status means for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Answer,
    Later,
    Token,
    Misfit,
    Abandoned,
    No,
}

fn judge(status: StatusCode) -> Verdict {
    match status {
        StatusCode::UNAUTHORIZED => Verdict::Token,
        StatusCode::UPGRADE_REQUIRED => Verdict::Misfit,
        StatusCode::FORBIDDEN | StatusCode::GONE => Verdict::Abandoned,
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => Verdict::Later,
        status if status.is_success() || status == StatusCode::CONFLICT => Verdict::Answer,
        status if status.is_server_error() => Verdict::Later,
        _ => Verdict::No,
    }
}

struct Answer {
    status: StatusCode,
    body: bytes::Bytes,
}

impl Answer {
    fn json<T: DeserializeOwned>(self) -> Result<T, Refusal> {
        if self.status == StatusCode::CONFLICT {
            return Err(refused(self.status, &self.body));
        }
        serde_json::from_slice(&self.body).map_err(|error| Refusal::Refused {
            status: self.status,
            message: format!("an answer that this agent does not understand: {error}"),
        })
    }

    fn log_answer(self) -> Result<LogAnswer, Refusal> {
        let length = serde_json::from_slice::<LogLength>(&self.body).map(|answer| answer.length);
        match (self.status == StatusCode::CONFLICT, length) {
            (false, Ok(length)) => Ok(LogAnswer::Done(Some(length))),
            (true, Ok(length)) => Ok(LogAnswer::Holds(length)),
            (_, Err(_)) => Err(refused(self.status, &self.body)),
        }
    }
}

fn refused(status: StatusCode, body: &[u8]) -> Refusal {
    let message = serde_json::from_slice::<ErrorBody>(body).map_or_else(|_| "no reason given".into(), |body| body.error.message);
    Refusal::Refused { status, message }
}

fn octets(request: RequestBuilder) -> RequestBuilder {
    request.header("content-type", "application/octet-stream")
}

/// A path of a run's files as a part of a URL.
fn encode(path: &str) -> String {
    utf8_percent_encode(path, PATH_SET).to_string()
}

/// Says why a call is repeated, once per call: a server that is away for an hour is one line.
fn log_first(pause: Option<Duration>, what: impl FnOnce() -> String) {
    if pause.is_none() {
        tracing::warn!(reason = what(), "a call to the server failed; repeating it until it succeeds");
    }
}

/// The reason below reqwest's "error sending request", without the URL.
pub(super) fn chain(error: &reqwest::Error) -> String {
    let mut text = String::from("the server cannot be reached");
    let mut next = std::error::Error::source(error);
    while let Some(error) = next {
        text.push_str(": ");
        text.push_str(&error.to_string());
        next = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_statuses_that_waiting_can_not_change_end_a_call() {
        let verdicts = [200, 204, 400, 401, 403, 404, 408, 409, 410, 413, 426, 429, 500, 503, 507];
        let table: Vec<_> = verdicts.map(|code| (code, judge(StatusCode::from_u16(code).unwrap()))).into();
        use Verdict::{Abandoned, Answer, Later, Misfit, No, Token};
        let expected = [Answer, Answer, No, Token, Abandoned, No, Later, Answer, Abandoned, No, Misfit, Later, Later, Later, Later];
        assert_eq!(table, verdicts.into_iter().zip(expected).collect::<Vec<_>>());
    }

    #[test]
    fn paths_keep_their_slashes_and_nothing_else_that_a_url_could_misread() {
        assert_eq!(encode("outputs/a b/100%?#é.txt"), "outputs/a%20b/100%25%3F%23%C3%A9.txt");
    }
}
