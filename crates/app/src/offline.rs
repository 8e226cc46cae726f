//! The data directory of a server, for commands that work on it themselves instead of asking the server.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use trainyard_store::StoreOptions;

use crate::{client_file::default_data_dir, settings::Settings};

/// Where a server keeps its things.
pub struct Offline {
    /// The data directory.
    pub data_dir: PathBuf,
    /// The server's configuration.
    pub settings: Settings,
}

impl Offline {
    /// The data directory given, which must be there, and the configuration given or, as for `serve`, the `config.toml` in it.
    pub fn open(data_dir: Option<PathBuf>, config: Option<&Path>) -> Result<Self> {
        let data_dir = data_dir.map_or_else(default_data_dir, Ok)?;
        if !data_dir.is_dir() {
            bail!("there is no data directory at {}\nhint: name the one of the server with --data-dir DIR", data_dir.display());
        }
        let data_dir = data_dir.canonicalize()?;
        let config = config.map(Path::to_owned).or_else(|| own_config(&data_dir));
        let settings = Settings::load(config.as_deref(), std::env::vars())?;
        Ok(Self { data_dir, settings })
    }

    /// How the server's store is opened.
    pub fn store(&self) -> StoreOptions {
        StoreOptions {
            database: self.settings.store.database.clone(),
            blobs: self.settings.store.blobs.clone(),
            data_dir: self.data_dir.clone(),
        }
    }
}

/// The configuration that a data directory has of its own.
pub fn own_config(data_dir: &Path) -> Option<PathBuf> {
    Some(data_dir.join("config.toml")).filter(|path| path.exists())
}
