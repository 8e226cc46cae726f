//! The closed list of things that can go wrong, and the one error type that crosses crate borders.
//!
//! An [`Error`] has a kind (each dialect maps it to a status and an envelope in one exhaustive table), a public
//! sentence that may be shown to the caller, optionally the place in the request it is about, and a source that
//! only the log sees. Nothing secret belongs in the public sentence.

use std::fmt;

/// Shorthand for results with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of failure it was. Closed on purpose: a new kind makes every dialect's table fail to compile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The thing does not exist, or the caller may not know that it does.
    NotFound,
    /// A thing with that name or id exists already.
    AlreadyExists,
    /// The request is malformed or asks for something impossible.
    Invalid,
    /// No credentials, or credentials that do not hold.
    Unauthenticated,
    /// The caller is known and may see the thing, but not do this to it.
    Forbidden,
    /// The request does not fit the present state of the thing.
    Conflict,
    /// Somebody else changed the thing first; reading again and repeating may help.
    Stale,
    /// The body or a part of it is over a limit.
    TooLarge,
    /// Too many requests.
    TooMany,
    /// The disk (or quota) that uploads are staged on is full.
    StorageFull,
    /// A dependency such as the database does not answer right now.
    Unavailable,
    /// The caller speaks a version of the agent's protocol that this server does not understand.
    UpgradeRequired,
    /// A known corner of a foreign API that this server does not act on.
    Unsupported,
    /// Our bug.
    Internal,
}

type Source = Box<dyn std::error::Error + Send + Sync + 'static>;

/// A failure with a public half (kind, sentence, target) and an internal half (source).
///
/// `Display` shows only the public sentence, so that formatting it can not leak the source.
pub struct Error {
    kind: ErrorKind,
    message: String,
    target: Option<String>,
    source: Option<Source>,
}

impl Error {
    /// A failure of `kind`, told to the caller as `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), target: None, source: None }
    }

    /// Something that must not happen; the caller is told no more than that.
    pub fn internal(source: impl Into<Source>) -> Self {
        Self::new(ErrorKind::Internal, "the server failed to handle this request; its log has the reason").with_source(source)
    }

    /// [`ErrorKind::Invalid`] with the sentence `message`.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }

    /// [`ErrorKind::NotFound`] with the sentence `message`.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    /// Names the part of the request that the error is about, e.g. `Configuration.NodeCount` or `projectZipFile`.
    #[must_use]
    pub fn with_target(mut self, target: impl Into<String>) -> Self {
        self.target = Some(target.into());
        self
    }

    /// Keeps the cause for the log.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Source>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The kind, for the dialects' tables.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The public sentence.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The part of the request that the error is about.
    pub fn target(&self) -> Option<&str> {
        self.target.as_deref()
    }

    /// The whole chain, for the log: the sentence, then each source.
    pub fn chain(&self) -> String {
        let mut text = self.message.clone();
        let mut next = std::error::Error::source(self);
        while let Some(error) = next {
            text.push_str(": ");
            text.push_str(&error.to_string());
            next = error.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.kind)
            .field("message", &self.message)
            .field("target", &self.target)
            .field("source", &self.source)
            .finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn std::error::Error + 'static))
    }
}
