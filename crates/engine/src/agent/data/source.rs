//! From a location in a definition, with what the order knows about it, to something that can be opened.

use std::path::{Path, PathBuf};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use trainyard_core::{
    data::{Location, Medium, Section, without_secrets},
    run::Cause,
};

use super::{bucket::Bucket, fault::Fault, files::Local};
use crate::{
    agent::life::Attempt,
    data::{DataAccess, DatastoreAccess},
};

/// What stays as it is in the path of an address.
const PATH_SET: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Knows the places of an attempt's data.
pub(super) struct Desk<'a> {
    access: DataAccess,
    run: &'a str,
    root: PathBuf,
}

/// Something that can be opened.
pub(super) enum Source {
    /// On the node.
    Local(Local),
    /// A file of a web server.
    Web {
        /// The whole address; may hold a secret.
        address: String,
        /// For sentences.
        shown: String,
    },
    /// In a bucket.
    Bucket(Bucket),
}

/// An input or output of a definition, by its name.
#[derive(Clone, Copy)]
pub(super) struct Named<'a> {
    /// Where in the definition.
    pub(super) section: Section,
    /// Its name.
    pub(super) name: &'a str,
    /// Where it is.
    pub(super) location: &'a Location,
}

impl Named<'_> {
    /// For sentences.
    pub(super) fn what(&self) -> String {
        format!("{}.{}", self.section.property(), self.name)
    }
}

impl<'a> Desk<'a> {
    pub(super) fn new(attempt: &'a Attempt) -> Result<Self, Cause> {
        let access = if attempt.order.data.is_null() {
            DataAccess::default()
        } else {
            serde_json::from_value(attempt.order.data.clone()).map_err(|error| Cause::StartFailed {
                message: format!("the places of data in the order cannot be read: {error}"),
                by_definition: false,
            })?
        };
        Ok(Self { access, run: &attempt.order.run_id, root: attempt.folder.path().join("data") })
    }

    /// The folder that everything of the attempt is in.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of one input or output.
    pub(super) fn folder(&self, named: Named<'_>) -> PathBuf {
        self.root.join(named.section.folder()).join(named.name)
    }

    /// What is behind a location, and what may be done with it.
    pub(super) fn source(&self, named: Named<'_>) -> Result<(Source, DatastoreAccess), Fault> {
        let (name, path) = match named.location {
            Location::Datastore { name, path } => (name, path),
            Location::Url { shown, sealed } => {
                let address = if sealed.is_some() { self.sealed(named)? } else { shown };
                return Ok((of_address(address)?, DatastoreAccess::ReadWrite));
            }
        };
        let Some(store) = self.access.datastores.get(name) else {
            return Err(Fault::Refused(format!("the datastore `{name}` is not in the server's configuration any more")));
        };
        // The names that the v1 service knew.
        let path = path.replace("{run-id}", self.run).replace("{output-name}", named.name);
        let source = match store.medium() {
            Medium::Path => Source::Local(Local::open(&store.url, &path)),
            Medium::Web => web(joined(&store.url, &path)),
            Medium::S3 => Source::Bucket(Bucket::open(&store.url, &path, &store.keys)?),
        };
        Ok((source, store.access))
    }

    fn sealed(&self, named: Named<'_>) -> Result<&str, Fault> {
        let of = |section: Section, name: &str| (section, name.to_owned());
        let address = self.access.addresses.iter().find(|address| of(address.section, &address.name) == of(named.section, named.name));
        address
            .and_then(|address| address.url.as_deref())
            .ok_or_else(|| Fault::Refused("its address was stored with a key that is gone; submit the run again".into()))
    }
}

impl Source {
    /// For sentences.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Local(local) => local.named().display().to_string(),
            Self::Web { shown, .. } => shown.clone(),
            Self::Bucket(bucket) => bucket.shown().to_owned(),
        }
    }

    /// For code that opens it itself.
    pub(super) fn address(&self) -> String {
        match self {
            Self::Web { address, .. } => address.clone(),
            Self::Local(_) | Self::Bucket(_) => self.shown(),
        }
    }
}

fn of_address(address: &str) -> Result<Source, Fault> {
    match Medium::of(address) {
        Some(Medium::Path) => Ok(Source::Local(Local::open(address, ""))),
        Some(Medium::Web) => Ok(web(address.to_owned())),
        // The server takes them only as parts of datastores, which have the keys.
        Some(Medium::S3) | None => Err(Fault::Refused("its address cannot be opened".into())),
    }
}

fn web(address: String) -> Source {
    let shown = without_secrets(&address).0;
    Source::Web { address, shown }
}

/// An address with a path below it; what it asks for stays at its end.
fn joined(url: &str, path: &str) -> String {
    let (place, query) = url.split_at(url.find(['?', '#']).unwrap_or(url.len()));
    let path = utf8_percent_encode(path, PATH_SET).to_string();
    if path.is_empty() { url.to_owned() } else { format!("{}/{path}{query}", place.trim_end_matches('/')) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_goes_before_what_the_address_asks_for() {
        assert_eq!(joined("https://h/c?sig=x", "a b/d.csv"), "https://h/c/a%20b/d.csv?sig=x");
        assert_eq!(joined("https://h/", "d"), "https://h/d");
        assert_eq!(joined("https://h/f.csv?sig=x", ""), "https://h/f.csv?sig=x");
    }

    #[test]
    fn only_the_code_gets_the_whole_address() {
        let source = of_address("https://u:hunter2@h/f?sig=hunter2").ok().unwrap();
        assert!(!source.shown().contains("hunter2") && source.address().contains("hunter2"));
    }
}
