//! Datastores (azureml-wire E.3), in the shape of containers of Azure Blob storage: the one that every client reads.

use std::collections::BTreeMap;

use serde::Serialize;

/// A datastore, without anything that opens it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DataStore {
    /// Its name.
    pub name: String,
    /// `AzureBlob`: the SDK makes an object of a type that it knows, or none.
    pub data_store_type: &'static str,
    /// True.
    pub has_been_validated: bool,
    /// Where it is, in our words.
    pub tags: BTreeMap<String, String>,
    /// What the type asks for.
    pub azure_storage_section: AzureStorage,
}

/// A container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AzureStorage {
    /// An account that does not exist.
    pub account_name: &'static str,
    /// The datastore's name.
    pub container_name: String,
    /// Below a name that leads nowhere (RFC 2606), so that nothing is sent to a stranger.
    pub endpoint: &'static str,
    /// `https`
    pub protocol: &'static str,
    /// `None`
    pub credential_type: &'static str,
}

impl DataStore {
    /// The datastore `name`, which is at `address`.
    pub fn new(name: &str, address: String) -> Self {
        Self {
            name: name.to_owned(),
            data_store_type: "AzureBlob",
            has_been_validated: true,
            tags: [("trainyard.url".to_owned(), address)].into(),
            azure_storage_section: AzureStorage {
                account_name: "trainyard",
                container_name: name.to_owned(),
                endpoint: "storage.invalid",
                protocol: "https",
                credential_type: "None",
            },
        }
    }
}
