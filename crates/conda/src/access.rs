//! How channels are reached: the client with credentials, and what is kept on disk.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use rattler::package_cache::PackageCache;
use rattler_networking::{
    Authentication, AuthenticationMiddleware, AuthenticationStorage, LazyClient, OfflineMiddleware,
    authentication_storage::{StorageBackend, backends::memory::MemoryStorage},
};
use rattler_repodata_gateway::{ChannelConfig, Gateway, SourceConfig, fetch::CacheAction};

use crate::{
    CondaError,
    kept::{indexes_in, packages_in},
};

/// How long a connection may take, and how long a download may pause.
const CONNECT: Duration = Duration::from_secs(20);
const STALL: Duration = Duration::from_secs(60);

/// How many requests are under way at once.
const REQUESTS: usize = 24;

/// What a host is shown.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// Goes into the path as `/t/TOKEN/`, as conda does it.
    CondaToken(String),
    /// `Authorization: Bearer`.
    Bearer(String),
    /// `Authorization: Basic`.
    Basic {
        /// User.
        username: String,
        /// Password.
        password: String,
    },
}

impl Secret {
    /// Reads what a configuration says: `user:password`, `bearer TOKEN`, or a conda token.
    pub fn parse(text: &str) -> Self {
        let text = text.trim();
        if let Some(token) = text.strip_prefix("bearer ").or_else(|| text.strip_prefix("Bearer ")) {
            return Self::Bearer(token.trim().to_owned());
        }
        match text.split_once(':') {
            Some((username, password)) => Self::Basic { username: username.to_owned(), password: password.to_owned() },
            None => Self::CondaToken(text.to_owned()),
        }
    }

    /// The word that nobody may see.
    pub fn word(&self) -> &str {
        match self {
            Self::CondaToken(word) | Self::Bearer(word) | Self::Basic { password: word, .. } => word,
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A secret for a host, or for all below `*.example.com`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// Without a port.
    pub host: String,
    /// What it is shown.
    pub secret: Secret,
}

/// How channels are reached and where downloads are kept.
#[derive(Clone, Debug)]
pub struct Access {
    /// The folder of downloads, which several machines may share: indexes of channels and unpacked packages.
    pub downloads: PathBuf,
    /// Whether only what is there already may be used; folders of this machine are always there.
    pub offline: bool,
    /// Later ones win.
    pub credentials: Vec<Credential>,
    /// A folder of packages that were brought here as files, each at `SHA256/NAME`; nobody is asked for those. `None`: there is none.
    pub brought: Option<PathBuf>,
}

impl Access {
    /// The words that must not be shown. One or two letters would tear holes into every other word.
    pub fn secrets(&self) -> Vec<String> {
        self.credentials.iter().map(|credential| credential.secret.word().to_owned()).filter(|word| word.len() > 2).collect()
    }

    /// The file of a package that was brought here.
    pub(crate) fn brought(&self, sha256: Option<&str>, name: &str) -> Option<PathBuf> {
        let file = self.brought.as_ref()?.join(sha256?).join(name);
        file.is_file().then_some(file)
    }

    pub(crate) fn packages(&self) -> PackageCache {
        PackageCache::new(packages_in(&self.downloads))
    }

    pub(crate) fn gateway(&self) -> Result<Gateway, CondaError> {
        let cache_action = if self.offline { CacheAction::ForceCacheOnly } else { CacheAction::CacheOrFetch };
        let config = ChannelConfig { default: SourceConfig { cache_action, ..SourceConfig::default() }, ..ChannelConfig::default() };
        Ok(Gateway::builder()
            .with_client(self.client()?)
            .with_cache_dir(indexes_in(&self.downloads))
            .with_package_cache(self.packages())
            .with_channel_config(config)
            .with_max_concurrent_requests(REQUESTS)
            .finish())
    }

    /// A client that adds what each host wants to see, or that refuses every request.
    pub(crate) fn client(&self) -> Result<LazyClient, CondaError> {
        let failed = |error: &dyn std::error::Error| CondaError::Node {
            what: format!("failed to make a client for channels: {}", crate::error::chain(error)),
            source: None,
        };
        // Somebody else may have been first with the same provider; there is one in this program.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let client = reqwest::Client::builder()
            .connect_timeout(CONNECT)
            .read_timeout(STALL)
            .user_agent(concat!("trainyard/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| failed(&error))?;
        let memory = MemoryStorage::new();
        for Credential { host, secret } in &self.credentials {
            let authentication = match secret.clone() {
                Secret::CondaToken(token) => Authentication::CondaToken(token),
                Secret::Bearer(token) => Authentication::BearerToken(token),
                Secret::Basic { username, password } => Authentication::BasicHTTP { username, password },
            };
            memory.store(host, &authentication).map_err(|error| failed(&error))?;
        }
        let mut storage = AuthenticationStorage::empty();
        storage.add_backend(Arc::new(memory));
        let mut builder = reqwest_middleware::ClientBuilder::new(client);
        if self.offline {
            builder = builder.with(OfflineMiddleware);
        }
        Ok(builder.with(AuthenticationMiddleware::from_auth_storage(storage)).build().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configured_secret_is_a_login_a_bearer_token_or_a_token_of_conda() {
        assert_eq!(Secret::parse("jo:pa:ss"), Secret::Basic { username: "jo".into(), password: "pa:ss".into() });
        assert_eq!(Secret::parse("bearer abc"), Secret::Bearer("abc".into()));
        assert_eq!(Secret::parse(" tok-en "), Secret::CondaToken("tok-en".into()));
        assert_eq!(format!("{:?}", Secret::parse("jo:secret")), "***");
    }
}
