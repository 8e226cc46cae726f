//! What every handler holds: the store, the engine, the token keys and the settings of this server.
//!
//! Made once by the binary; cheap to clone. Nothing here changes while the server runs, apart from what the parts do inside.

use std::{ops::Deref, sync::Arc, time::Duration};

use trainyard_core::{archive::ArchiveLimits, ids::TenantId};
use trainyard_engine::{Handle, environment::EnvironmentSettings};
use trainyard_store::Store;
use url::Url;

use crate::{Metrics, auth::Tokens, curated::CuratedEnvironment, sealing::Sealer, signing::UrlSigner};

/// Shared by all requests.
#[derive(Clone)]
pub struct AppState(pub(crate) Arc<Inner>);

impl AppState {
    /// Wraps the parts.
    pub fn new(inner: Inner) -> Self {
        Self(Arc::new(inner))
    }
}

impl Deref for AppState {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.0
    }
}

/// The parts of [`AppState`].
pub struct Inner {
    /// Rows and blobs.
    pub store: Store,
    /// Wakes the engine, tells its targets, watches runs.
    pub engine: Handle,
    /// Makes and checks access tokens.
    pub tokens: Tokens,
    /// Makes and checks URLs that need no token.
    pub url_signer: UrlSigner,
    /// Seals passwords before they are stored.
    pub sealer: Arc<Sealer>,
    /// How this server was configured.
    pub settings: ServerSettings,
    /// PEM of the private CA (or of the configured chain), for documents that hand it out.
    pub ca_pem: String,
    /// Counters for `/metrics`.
    pub metrics: Metrics,
}

/// How this server was configured.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// Where clients reach this server, without a trailing path; agents use it, and answers use it where a request names no host.
    pub public_url: Url,
    /// The one tenant of this server.
    pub tenant: TenantId,
    /// The region that its workspaces are in, e.g. `local`.
    pub region: String,
    /// What requests may be.
    pub limits: Limits,
    /// How long a signed content URL is good for.
    pub url_signing_ttl: Duration,
    /// Where environments are cached on this machine.
    pub environments: EnvironmentSettings,
    /// Environments that the configuration gives a name.
    pub curated: Vec<CuratedEnvironment>,
}

/// Limits on requests, in bytes unless the name says otherwise.
#[derive(Clone, Debug)]
pub struct Limits {
    /// A project zip.
    pub max_upload_bytes: u64,
    /// A run definition.
    pub max_definition_bytes: u64,
    /// Any other JSON (or form) body.
    pub max_json_bytes: u64,
    /// What a zip may hold.
    pub archive: ArchiveLimits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_upload_bytes: 300 * 1024 * 1024,
            max_definition_bytes: 1024 * 1024,
            max_json_bytes: 4 * 1024 * 1024,
            archive: ArchiveLimits::default(),
        }
    }
}
