//! The datastores of this server: what the configuration calls them, where they are, and what an agent must know to open them.
//!
//! Definitions name datastores; addresses and credentials stay here until an attempt is ordered, so that no row holds them and a key that
//! is changed in the configuration counts for the next attempt. Opening is the agent's business.

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use trainyard_core::{
    Error, Result,
    data::{DEFAULT_DATASTORE, DataSpec, Location, Medium, Section, without_secrets},
    ids::WorkspaceId,
};

use crate::Unseal;

/// A place where data is.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datastore {
    /// An absolute path, or a URL with the scheme `file`, `http`, `https` or `s3`. May hold credentials.
    pub url: String,
    /// Whether runs may write to it.
    pub access: DatastoreAccess,
    /// For `s3`.
    #[serde(default)]
    pub keys: S3Keys,
}

/// What runs may do with a datastore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DatastoreAccess {
    /// Read only.
    Read,
    /// Read and write.
    ReadWrite,
}

/// How an S3 bucket is reached; what is missing is taken from the `AWS_` variables of the node.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct S3Keys {
    /// Where the service is, unless it is Amazon's.
    pub endpoint: Option<String>,
    /// The region.
    pub region: Option<String>,
    /// The key's name.
    pub access_key_id: Option<String>,
    /// The key; never shown.
    pub secret_access_key: Option<String>,
    /// The session that the key is for; never shown.
    pub session_token: Option<String>,
}

impl S3Keys {
    /// The same, completed with the server's own `AWS_` variables where there is no key.
    #[must_use]
    pub fn or_from(self, variable: impl Fn(&str) -> Option<String>) -> Self {
        let first = |names: &[&str]| names.iter().find_map(|name| variable(name)).filter(|value| !value.is_empty());
        let own = self.access_key_id.is_some();
        Self {
            endpoint: self.endpoint.or_else(|| first(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"])),
            region: self.region.or_else(|| first(&["AWS_REGION", "AWS_DEFAULT_REGION"])),
            access_key_id: self.access_key_id.or_else(|| first(&["AWS_ACCESS_KEY_ID"])),
            secret_access_key: self.secret_access_key.or_else(|| first(&["AWS_SECRET_ACCESS_KEY"]).filter(|_| !own)),
            session_token: self.session_token.or_else(|| first(&["AWS_SESSION_TOKEN"]).filter(|_| !own)),
        }
    }
}

impl fmt::Debug for S3Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Keys").field("endpoint", &self.endpoint).field("region", &self.region).finish_non_exhaustive()
    }
}

impl fmt::Debug for Datastore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Datastore").field("url", &self.shown()).field("access", &self.access).field("keys", &self.keys).finish()
    }
}

impl Datastore {
    /// A folder that may be written to.
    pub fn folder(path: &Path) -> Self {
        Self { url: path.to_string_lossy().into_owned(), access: DatastoreAccess::ReadWrite, keys: S3Keys::default() }
    }

    /// Its address without anything secret.
    pub fn shown(&self) -> String {
        without_secrets(&self.url).0
    }

    /// What is behind its address.
    pub fn medium(&self) -> Medium {
        // Checked when it was configured.
        Medium::of(&self.url).unwrap_or(Medium::Path)
    }
}

/// The datastores of a server.
#[derive(Clone, Debug)]
pub struct Datastores {
    configured: BTreeMap<String, Datastore>,
    /// Below it each workspace has its folder, for the datastore that every workspace has.
    own: PathBuf,
}

/// A datastore that was found.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// Its name, as it is spelt in the configuration.
    pub name: &'a str,
    /// What the configuration says; `None`: the one that every workspace has, a folder on the server's machine.
    pub configured: Option<&'a Datastore>,
}

impl Found<'_> {
    /// What is behind it.
    pub fn medium(&self) -> Medium {
        self.configured.map_or(Medium::Path, Datastore::medium)
    }

    /// What runs may do with it.
    pub fn access(&self) -> DatastoreAccess {
        self.configured.map_or(DatastoreAccess::ReadWrite, |datastore| datastore.access)
    }
}

impl Datastores {
    /// `configured` by name; `own` is where the folders of workspaces are, made when they are needed.
    ///
    /// # Errors
    /// [`trainyard_core::ErrorKind::Invalid`] for an address that cannot be one.
    pub fn new(configured: BTreeMap<String, Datastore>, own: PathBuf) -> Result<Self> {
        for (name, datastore) in &configured {
            check(name, datastore)?;
        }
        Ok(Self { configured, own })
    }

    /// All of them, by name.
    pub fn all(&self) -> Vec<Found<'_>> {
        let mut all: Vec<_> = self.configured.iter().map(|(name, datastore)| Found { name, configured: Some(datastore) }).collect();
        if !self.configured.keys().any(|name| name.eq_ignore_ascii_case(DEFAULT_DATASTORE)) {
            all.push(Found { name: DEFAULT_DATASTORE, configured: None });
        }
        all.sort_by_key(|found| found.name);
        all
    }

    /// The one with this name, in any case: so the v1 service compared them.
    pub fn find(&self, name: &str) -> Option<Found<'_>> {
        self.all().into_iter().find(|found| found.name.eq_ignore_ascii_case(name.trim()))
    }

    /// The datastore that an address lies in, with the path there: the closest one.
    pub fn covering(&self, address: &str) -> Option<(Found<'_>, String)> {
        let within = |root: &str| {
            let rest = address.strip_prefix(root.trim_end_matches('/'))?;
            (rest.is_empty() || rest.starts_with('/')).then(|| rest.trim_matches('/').to_owned())
        };
        let found = self.all().into_iter().filter_map(|found| Some((found, within(&found.configured?.url)?)));
        found.min_by_key(|(_, path)| path.len())
    }

    /// What the agent of an attempt must know about the places that `spec` names.
    ///
    /// # Errors
    /// If the folder of the workspace cannot be made.
    pub fn access(&self, spec: &DataSpec, workspace: WorkspaceId, seal: &dyn Unseal) -> Result<DataAccess> {
        let mut access = DataAccess::default();
        let inputs = spec.inputs.iter().map(|input| (input.section, &input.name, &input.location));
        let outputs = spec.outputs.iter().map(|output| (output.section, &output.name, &output.location));
        for (section, name, location) in inputs.chain(outputs) {
            match location {
                Location::Datastore { name, .. } => {
                    let datastore = match self.find(name) {
                        Some(Found { configured: Some(datastore), .. }) => datastore.clone(),
                        Some(Found { configured: None, .. }) => Datastore::folder(&self.folder_of(workspace)?),
                        None => continue,
                    };
                    access.datastores.insert(name.clone(), datastore);
                }
                Location::Url { sealed: Some(sealed), .. } => {
                    let url = seal.unseal(sealed).inspect_err(|error| {
                        tracing::warn!(error = error.chain(), "the address of a run's data cannot be opened");
                    });
                    access.addresses.push(Address { section, name: name.clone(), url: url.ok() });
                }
                Location::Url { .. } => {}
            }
        }
        Ok(access)
    }

    fn folder_of(&self, workspace: WorkspaceId) -> Result<PathBuf> {
        let folder = self.own.join(workspace.to_string());
        fs::create_dir_all(&folder).map_err(|error| {
            Error::new(trainyard_core::ErrorKind::StorageFull, format!("the datastore `{}` cannot be made", folder.display()))
                .with_source(error)
        })?;
        Ok(folder)
    }
}

fn check(name: &str, datastore: &Datastore) -> Result<()> {
    trainyard_core::data::check_name(name).map_err(|why| Error::invalid(format!("`{name}` {why}")))?;
    let expected = "expected an absolute path, `file:///…`, `http(s)://…` or `s3://bucket/prefix`";
    let shown = datastore.shown();
    let Some(medium) = Medium::of(&datastore.url) else { return Err(Error::invalid(format!("`url` is `{shown}`: {expected}"))) };
    if medium == Medium::S3 {
        let rest = &datastore.url["s3://".len()..];
        let bucket = rest.split('/').next().unwrap_or_default();
        if bucket.is_empty() || rest.contains(['?', '#', '@']) {
            return Err(Error::invalid(format!("`url` is `{shown}`: expected `s3://bucket/prefix`; keys have keys of their own")));
        }
        if datastore.keys.access_key_id.is_some() != datastore.keys.secret_access_key.is_some() {
            return Err(Error::invalid("`access_key_id` and `secret_access_key` go together: one of them is missing"));
        }
    }
    Ok(())
}

/// What an agent must know about the places of its definition's data; travels in the order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataAccess {
    /// By name. One that is not in the configuration any more is missing.
    #[serde(default)]
    pub datastores: BTreeMap<String, Datastore>,
    /// Addresses with secrets in them.
    #[serde(default)]
    pub addresses: Vec<Address>,
}

/// An address with a secret in it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// Whose it is.
    pub section: Section,
    /// The name of the input or output.
    pub name: String,
    /// The whole address; `None`: it was sealed with a key that is gone. Never shown.
    pub url: Option<String>,
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Address").field("section", &self.section).field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datastore(url: &str) -> Datastore {
        Datastore { url: url.into(), access: DatastoreAccess::Read, keys: S3Keys::default() }
    }

    fn stores(list: &[(&str, &str)]) -> Result<Datastores> {
        Datastores::new(list.iter().map(|(name, url)| ((*name).to_owned(), datastore(url))).collect(), "/own".into())
    }

    #[test]
    fn every_workspace_has_a_datastore_unless_the_configuration_says_where_it_is() {
        let found = stores(&[("Images", "/images")]).unwrap();
        assert_eq!(found.all().iter().map(|found| found.name).collect::<Vec<_>>(), ["Images", DEFAULT_DATASTORE]);
        assert!(found.find("WorkspaceBlobStore").unwrap().configured.is_none());
        assert_eq!(found.find("images").unwrap().name, "Images");
        assert!(found.find("gone").is_none());
        let shared = stores(&[(DEFAULT_DATASTORE, "/shared/data")]).unwrap();
        assert_eq!(shared.find(DEFAULT_DATASTORE).unwrap().access(), DatastoreAccess::Read);
    }

    #[test]
    fn an_address_belongs_to_the_closest_datastore_that_it_lies_in() {
        let found = stores(&[("all", "s3://b"), ("deep", "s3://b/deep/er"), ("other", "s3://bb")]).unwrap();
        let covering = |address: &str| found.covering(address).map(|(found, path)| (found.name.to_owned(), path));
        assert_eq!(covering("s3://b/deep/er/x/y"), Some(("deep".into(), "x/y".into())));
        assert_eq!(covering("s3://b/deep/erx"), Some(("all".into(), "deep/erx".into())));
        assert_eq!(covering("s3://bbb/x"), None);
    }

    #[test]
    fn addresses_that_cannot_be_datastores_are_told_without_their_secrets() {
        for url in ["data", "ftp://u:hunter2@h/x", "s3://", "s3:///x", "s3://k:hunter2@b/x"] {
            let error = stores(&[("d", url)]).unwrap_err();
            assert!(error.message().contains("`url` is `"), "{url}: {error}");
            assert!(!url.starts_with("s3") || !error.message().contains("hunter2"), "{error}");
        }
        let mut half = datastore("s3://b");
        half.keys.access_key_id = Some("k".into());
        assert!(Datastores::new([("d".into(), half)].into(), "/own".into()).unwrap_err().message().contains("go together"));
        assert!(stores(&[("a b", "/x")]).unwrap_err().message().contains("is not a name"));
    }

    #[test]
    fn no_secret_shows_in_debug_output() {
        let keys = S3Keys { secret_access_key: Some("hunter2".into()), session_token: Some("hunter2".into()), ..S3Keys::default() };
        let store = Datastore { keys, ..datastore("https://u:hunter2@h/x?sig=hunter2") };
        let address = Address { section: Section::Inputs, name: "a".into(), url: Some("https://h/?hunter2".into()) };
        let access = DataAccess { datastores: [("d".to_owned(), store)].into(), addresses: vec![address] };
        assert!(!format!("{access:?}").contains("hunter2"));
    }

    #[test]
    fn the_servers_own_variables_complete_what_the_configuration_leaves_open() {
        let variable = |name: &str| match name {
            "AWS_ACCESS_KEY_ID" => Some("theirs".to_owned()),
            "AWS_SECRET_ACCESS_KEY" => Some("secret".to_owned()),
            "AWS_DEFAULT_REGION" => Some("r".to_owned()),
            _ => None,
        };
        let keys = S3Keys::default().or_from(variable);
        assert_eq!((keys.access_key_id.as_deref(), keys.region.as_deref()), (Some("theirs"), Some("r")));
        let own = S3Keys { access_key_id: Some("own".into()), secret_access_key: Some("own".into()), ..S3Keys::default() };
        let keys = own.or_from(|name| (name == "AWS_SESSION_TOKEN").then(|| "theirs".to_owned()));
        assert_eq!((keys.access_key_id.as_deref(), keys.session_token), (Some("own"), None), "another key's session");
    }
}
