//! Why there are no packages, in sentences for the owner of a run.

use std::{error::Error, io};

use rattler::{install::InstallerError, package_cache::PackageCacheError};

/// Why packages could not be chosen or installed. `Display` is a sentence without credentials.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CondaError {
    /// The request can not be read.
    #[error("{0}")]
    Request(String),
    /// A channel can not be reached or does not answer as channels do.
    #[error("{0}")]
    Channel(String),
    /// No set of packages satisfies the request; says which requirement conflicts with which.
    #[error("{0}")]
    Unsolvable(String),
    /// A package could not be fetched, or is not what the channel says it is.
    #[error("{0}")]
    Package(String),
    /// Only what is on this machine may be used, and that is not enough.
    #[error("{0}")]
    Offline(String),
    /// This machine failed: a full disk, say.
    #[error("{what}")]
    Node {
        /// What was tried, with the reason.
        what: String,
        /// Why it failed, where that is known as such.
        source: Option<io::Error>,
    },
}

impl CondaError {
    /// Whether asking again later may help: the network or the machine is to blame, not the request.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Channel(_) | Self::Offline(_) | Self::Node { .. })
    }

    /// Without these words.
    pub(crate) fn masked(self, secrets: &[String]) -> Self {
        let mask = |text: String| {
            let text = trainyard_core::environment::requirement::hide_userinfo(&text);
            secrets.iter().fold(text, |text, secret| text.replace(secret.as_str(), "***"))
        };
        match self {
            Self::Request(text) => Self::Request(mask(text)),
            Self::Channel(text) => Self::Channel(mask(text)),
            Self::Unsolvable(text) => Self::Unsolvable(mask(text)),
            Self::Package(text) => Self::Package(mask(text)),
            Self::Offline(text) => Self::Offline(mask(text)),
            Self::Node { what, source } => Self::Node { what: mask(what), source },
        }
    }
}

/// The whole chain of reasons, each said once.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    for reason in std::iter::successors(error.source(), |&reason| reason.source()) {
        let reason = reason.to_string();
        if !text.contains(&reason) {
            text.push_str(": ");
            text.push_str(&reason);
        }
    }
    text
}

/// The I/O error at the bottom that the machine itself is to blame for.
fn of_the_node(error: &(dyn Error + 'static)) -> Option<io::ErrorKind> {
    let mut at: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(reason) = at {
        if let Some(io) = reason.downcast_ref::<io::Error>() {
            let kinds = [
                io::ErrorKind::StorageFull,
                io::ErrorKind::QuotaExceeded,
                io::ErrorKind::ReadOnlyFilesystem,
                io::ErrorKind::PermissionDenied,
            ];
            if kinds.contains(&io.kind()) {
                return Some(io.kind());
            }
        }
        at = reason.source();
    }
    // Not every layer hands its reason on as one.
    chain(error).contains("No space left on device").then_some(io::ErrorKind::StorageFull)
}

/// An installation that failed.
pub(crate) fn of_installer(error: &InstallerError) -> CondaError {
    let text = chain(error);
    if let Some(kind) = of_the_node(error) {
        return CondaError::Node { what: text, source: Some(kind.into()) };
    }
    match error {
        InstallerError::FailedToFetch(name, PackageCacheError::UnsafeCacheKey(_)) => {
            CondaError::Package(format!("the package {name} is refused: its name or version would lead out of the cache ({text})"))
        }
        InstallerError::FailedToFetch(..) if text.contains("offline mode") => {
            CondaError::Offline(format!("{text}; `offline = true` under [environments] allows only packages that were downloaded before"))
        }
        InstallerError::UnsafePackageRecord(_) => {
            CondaError::Package(format!("a package is refused because it would lead out of its folder: {text}"))
        }
        _ => CondaError::Package(text),
    }
}
