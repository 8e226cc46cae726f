//! The first start: what a server has before anybody made anything.
//!
//! A tenant and a subscription (kept in `DIR/identity.json`), a workspace, and an application that owns the server, whose
//! credentials are written to `DIR/client.json`. Every step looks whether it was done, so that a crash between two of them
//! is made good by the next start. Nothing that people deleted comes back: once there are applications, no default one is
//! made.

use std::{fs, io, path::Path};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use trainyard_core::{
    Error, ErrorKind, Result,
    access::{Grant, Role},
    ids::{AppId, TenantId, WorkspaceId, WorkspacePath},
};
use trainyard_engine::trust::{self, Access};
use trainyard_store::{Store, apps::App, workspaces::Workspace};
use url::Url;
use uuid::Uuid;

use crate::{auth::secrets, clock};

/// Resource group, workspace and application of the first start.
const DEFAULT_NAME: &str = "default";

/// What is fixed at the first start, in `DIR/identity.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The one tenant of this server.
    pub tenant_id: TenantId,
    /// The subscription of the default workspace.
    pub subscription_id: Uuid,
}

impl Identity {
    /// Reads the identity of the data directory `dir`, or makes one.
    ///
    /// # Errors
    /// [`Internal`](ErrorKind::Internal) when the file can neither be read nor made, or is damaged.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("identity.json");
        if let Some(identity) = read(&path)? {
            return Ok(identity);
        }
        let identity = Self { tenant_id: TenantId(Uuid::new_v4()), subscription_id: Uuid::new_v4() };
        write(&path, &identity, Access::Everyone)?;
        Ok(identity)
    }
}

/// `DIR/client.json`: everything that a client or a test needs. Holds a secret; mode 0600.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientFile {
    /// `https://host:port`, without a trailing slash.
    pub endpoint: String,
    /// `{endpoint}/{tenant_id}`: what adal and MSAL take.
    pub authority: String,
    /// The tenant.
    pub tenant_id: TenantId,
    /// The application.
    pub client_id: AppId,
    /// Its secret.
    pub client_secret: String,
    /// The default subscription.
    pub subscription_id: String,
    /// The default resource group.
    pub resource_group: String,
    /// The default workspace.
    pub workspace_name: String,
    /// Its region.
    pub region: String,
    /// Path of the CA's certificate, PEM.
    pub ca_cert: String,
}

impl std::fmt::Debug for ClientFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientFile").field("endpoint", &self.endpoint).field("client_id", &self.client_id).finish_non_exhaustive()
    }
}

/// Where the server is, for [`ensure_defaults`].
#[derive(Clone, Copy, Debug)]
pub struct Location<'a> {
    /// The data directory.
    pub data_dir: &'a Path,
    /// Where clients reach the server.
    pub public_url: &'a Url,
    /// The region of its workspaces.
    pub region: &'a str,
    /// The CA's certificate.
    pub ca_cert: &'a Path,
}

/// Makes what is missing of the defaults, and brings `client.json` up to date with where the server is now. `None`: there is no default
/// application (any more), and so nothing to write.
///
/// # Errors
/// Those of the store; [`Internal`](ErrorKind::Internal) for files.
pub async fn ensure_defaults(store: &Store, identity: Identity, location: Location<'_>) -> Result<Option<ClientFile>> {
    ensure_workspace(store, identity, location.region).await?;
    let path = location.data_dir.join("client.json");
    let present: Option<ClientFile> = match read(&path) {
        Ok(present) => present,
        // It can be made again, which is better than not to start.
        Err(error) => {
            tracing::warn!(error = error.chain(), "client.json is damaged and is replaced");
            None
        }
    };
    let holder = match &present {
        Some(file) => store.app(file.client_id).await?,
        None => None,
    };
    let file = match (present.clone(), holder) {
        (Some(file), Some(app)) => {
            if secrets::hash(&file.client_secret) != app.secret_sha256 {
                tracing::warn!(app = %app.id, path = %path.display(), "the secret in client.json was rotated; put the new one there");
            }
            ClientFile { tenant_id: identity.tenant_id, ..file }.at(location)
        }
        (Some(_) | None, None) | (None, Some(_)) => match default_credentials(store).await? {
            Some(credentials) => client_file(identity, location, credentials),
            None => return Ok(None),
        },
    };
    if present.as_ref() != Some(&file) {
        write(&path, &file, Access::Owner)?;
        tracing::info!(path = %path.display(), "wrote the credentials of the default application");
    }
    Ok(Some(file))
}

/// Whether the only way in are the credentials that the first start made: then a public address would be as good as open to
/// whoever finds the file.
///
/// # Errors
/// Those of the store.
pub async fn has_only_generated_credentials(store: &Store) -> Result<bool> {
    Ok(store.list_apps().await?.iter().all(|app| app.generated))
}

async fn ensure_workspace(store: &Store, identity: Identity, region: &str) -> Result<()> {
    if !store.list_workspaces().await?.is_empty() {
        return Ok(());
    }
    let path = WorkspacePath {
        subscription_id: identity.subscription_id.to_string(),
        resource_group: DEFAULT_NAME.into(),
        workspace_name: DEFAULT_NAME.into(),
    };
    let workspace = Workspace { id: WorkspaceId(Uuid::now_v7()), path, region: region.to_owned(), created_us: clock::now_us() };
    match store.create_workspace(&workspace).await {
        // Another server on the same database was faster.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

struct Credentials {
    id: AppId,
    secret: String,
}

/// New credentials that own the server: on the first start, and in place of those whose file was lost (or never written, because a start
/// ended between the row and the file), for nobody else knows their secret. `None`: people made applications and took the default one away.
async fn default_credentials(store: &Store) -> Result<Option<Credentials>> {
    let apps = store.list_apps().await?;
    let lost: Vec<AppId> = apps.iter().filter(|app| app.generated).map(|app| app.id).collect();
    if lost.is_empty() && !apps.is_empty() {
        return Ok(None);
    }
    let secret = secrets::generate()?;
    let app = App {
        id: AppId(Uuid::new_v4()),
        name: DEFAULT_NAME.into(),
        secret_sha256: secrets::hash(&secret),
        grants: vec![Grant { workspace: None, role: Role::Owner }],
        created_us: clock::now_us(),
        generated: true,
    };
    // In this order there is an Owner at every moment; what a crash leaves over is lost as well, and goes at the next start.
    store.create_app(&app).await?;
    for id in lost {
        store.delete_app(id).await?;
    }
    Ok(Some(Credentials { id: app.id, secret }))
}

fn client_file(identity: Identity, location: Location<'_>, credentials: Credentials) -> ClientFile {
    ClientFile {
        endpoint: String::new(),
        authority: String::new(),
        tenant_id: identity.tenant_id,
        client_id: credentials.id,
        client_secret: credentials.secret,
        subscription_id: identity.subscription_id.to_string(),
        resource_group: DEFAULT_NAME.into(),
        workspace_name: DEFAULT_NAME.into(),
        region: location.region.to_owned(),
        ca_cert: String::new(),
    }
    .at(location)
}

impl ClientFile {
    /// The same for a server that is now at `location`.
    fn at(self, location: Location<'_>) -> Self {
        let endpoint = location.public_url.as_str().trim_end_matches('/').to_owned();
        let authority = format!("{endpoint}/{}", self.tenant_id);
        Self { endpoint, authority, ca_cert: location.ca_cert.display().to_string(), ..self }
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let problem = |what: &str| Error::new(ErrorKind::Internal, format!("`{}` {what}", path.display()));
    match fs::read(path) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes).map(Some).map_err(|error| problem("is damaged; restore it from a backup").with_source(error))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(problem("cannot be read").with_source(error)),
    }
}

fn write<T: Serialize>(path: &Path, value: &T, access: Access) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value).map_err(Error::internal)?;
    text.push(b'\n');
    trust::replace_file(path, &text, access)
}
