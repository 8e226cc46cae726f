//! `client.json`: everything that a client needs to reach a server, and how the command line finds it.
//!
//! The server writes it on first start. It holds the default application's secret, so it is read only by its owner.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use trainyard_core::ids::WorkspacePath;

/// The content of `client.json`.
#[derive(Clone, Serialize, Deserialize)]
pub struct ClientFile {
    /// `https://host:port` of the server.
    pub endpoint: String,
    /// `https://host:port/{tenant}`: what `adal` and `msal` call the authority.
    pub authority: String,
    /// The tenant's GUID.
    pub tenant_id: String,
    /// The application.
    pub client_id: String,
    /// Its secret.
    pub client_secret: String,
    /// The default workspace's subscription.
    pub subscription_id: String,
    /// The default workspace's resource group.
    pub resource_group: String,
    /// The default workspace's name.
    pub workspace_name: String,
    /// The server's region.
    pub region: String,
    /// PEM file of the server's CA.
    pub ca_cert: PathBuf,
}

impl fmt::Debug for ClientFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientFile").field("endpoint", &self.endpoint).field("client_id", &self.client_id).finish_non_exhaustive()
    }
}

impl ClientFile {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("the client file {} cannot be read", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is not a client file", path.display()))
    }

    /// The workspace that commands work in unless told otherwise.
    pub fn workspace(&self) -> WorkspacePath {
        WorkspacePath {
            subscription_id: self.subscription_id.clone(),
            resource_group: self.resource_group.clone(),
            workspace_name: self.workspace_name.clone(),
        }
    }
}

/// Where to look for the client file.
#[derive(Clone, Debug, Default)]
pub struct Search {
    /// `--client FILE`, or the variable `TRAINYARD_CLIENT`.
    pub client: Option<PathBuf>,
    /// `--data-dir DIR`, or the variable `TRAINYARD_DATA_DIR`.
    pub data_dir: Option<PathBuf>,
}

impl Search {
    /// The client file: the one named, else the one of the data directory named, else of the default data directory.
    pub fn find(&self) -> Result<ClientFile> {
        let path = match (&self.client, &self.data_dir) {
            (Some(file), _) => file.clone(),
            (None, Some(dir)) => dir.join("client.json"),
            (None, None) => default_data_dir()?.join("client.json"),
        };
        if !path.exists() {
            bail!(
                "there is no client file at {}\nhint: start a server with `trainyard serve`, or name the file that its operator gave you with --client FILE or TRAINYARD_CLIENT",
                path.display()
            );
        }
        ClientFile::read(&path)
    }
}

/// `$XDG_DATA_HOME/trainyard`, else `~/.local/share/trainyard`.
pub fn default_data_dir() -> Result<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
        .map(|base| base.join("trainyard"))
        .context("neither XDG_DATA_HOME nor HOME is set; name the data directory with --data-dir DIR")
}
