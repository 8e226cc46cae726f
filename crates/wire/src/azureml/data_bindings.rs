//! Data that a run reads and writes (azureml-wire D.5).

use serde_json::Value;

use super::runs::TextMap;
use crate::json::{object, words};

words! {
    /// `dataReferences.*.mode`
    pub enum ReferenceMode {
        /// Seen as a folder.
        Mount = "Mount",
        /// Copied before.
        Download = "Download",
        /// Copied afterwards.
        Upload = "Upload",
    }
}

words! {
    /// `data.*.mechanism`
    pub enum InputMechanism {
        /// Given as an id.
        Direct = "Direct",
        /// Seen as a folder.
        Mount = "Mount",
        /// Copied before.
        Download = "Download",
        /// Through HDFS.
        Hdfs = "Hdfs",
    }
}

words! {
    /// `outputData.*.mechanism`
    pub enum OutputMechanism {
        /// Copied afterwards.
        Upload = "Upload",
        /// Seen as a folder.
        Mount = "Mount",
        /// Through HDFS.
        Hdfs = "Hdfs",
        /// By reference.
        Link = "Link",
    }
}

object! {
    /// One of `dataReferences`.
    pub struct DataReference {
        /// Name of a datastore.
        "dataStoreName" data_store_name: Option<String> = None,
        /// How it gets there.
        "mode" mode: ReferenceMode = ReferenceMode::Mount,
        /// Path there.
        "pathOnDataStore" path_on_data_store: Option<String> = None,
        /// Path on the node.
        "pathOnCompute" path_on_compute: Option<String> = None,
        /// Whether files are overwritten.
        "overwrite" overwrite: bool = false,
    }
}

object! {
    /// One of `data`.
    pub struct Data {
        /// Where it is.
        "dataLocation" data_location: Option<DataLocation> = None,
        /// How it gets there.
        "mechanism" mechanism: Option<InputMechanism> = None,
        /// Variable that tells where.
        "environmentVariableName" environment_variable_name: Option<String> = None,
        /// Path on the node.
        "pathOnCompute" path_on_compute: Option<String> = None,
        /// Whether files are overwritten.
        "overwrite" overwrite: bool = false,
        /// More.
        "options" options: TextMap = TextMap::new(),
        /// Whether missing folders are made.
        "createOutputDirectories" create_output_directories: bool = false,
    }
}

object! {
    /// Where data is: one of the four.
    pub struct DataLocation {
        /// A dataset.
        "dataset" dataset: Option<DatasetReference> = None,
        /// A path on a datastore.
        "dataPath" data_path: Option<DataStorePath> = None,
        /// A URL.
        "uri" uri: Option<UriReference> = None,
        /// Kind.
        "type" location_type: Option<String> = None,
    }
}

object! {
    /// A dataset, by id or by name and version.
    pub struct DatasetReference {
        /// Id.
        "id" id: Option<String> = None,
        /// Name.
        "name" name: Option<String> = None,
        /// Version; clients send it as text or as a number.
        "version" version: Option<Value> = None,
    }
}

object! {
    /// A path on a datastore.
    pub struct DataStorePath {
        /// Name of the datastore.
        "datastoreName" datastore_name: Option<String> = None,
        /// Path there.
        "relativePath" relative_path: Option<String> = None,
    }
}

object! {
    /// A URL.
    pub struct UriReference {
        /// The URL.
        "path" path: Option<String> = None,
        /// A file or a folder.
        "isFile" is_file: Option<bool> = None,
    }
}

object! {
    /// One of `outputData`.
    pub struct OutputData {
        /// Where it goes.
        "outputLocation" output_location: Option<DataLocation> = None,
        /// How it gets there.
        "mechanism" mechanism: Option<OutputMechanism> = None,
        /// More.
        "additionalOptions" additional_options: Option<OutputOptions> = None,
    }
}

object! {
    /// More about an output.
    pub struct OutputOptions {
        /// Path on the node.
        "pathOnCompute" path_on_compute: Option<String> = None,
        /// Register it as a dataset.
        "registrationOptions" registration_options: Option<RegistrationOptions> = None,
        /// How it is uploaded.
        "uploadOptions" upload_options: Option<UploadOptions> = None,
        /// How it is mounted.
        "mountOptions" mount_options: Option<Value> = None,
    }
}

object! {
    /// How an output is registered as a dataset.
    pub struct RegistrationOptions {
        /// Name.
        "name" name: Option<String> = None,
        /// What it is.
        "description" description: Option<String> = None,
        /// Tags.
        "tags" tags: TextMap = TextMap::new(),
        /// Properties.
        "properties" properties: TextMap = TextMap::new(),
        /// More.
        "datasetRegistrationOptions" dataset_registration_options: Option<DatasetRegistrationOptions> = None,
    }
}

object! {
    /// More about the dataset.
    pub struct DatasetRegistrationOptions {
        /// A data flow.
        "additionalTransformation" additional_transformation: Option<String> = None,
    }
}

object! {
    /// How an output is uploaded.
    pub struct UploadOptions {
        /// Whether files are overwritten.
        "overwrite" overwrite: bool = false,
        /// Which files.
        "sourceGlobs" source_globs: Option<SourceGlobs> = None,
    }
}

object! {
    /// Which files.
    pub struct SourceGlobs {
        /// Patterns.
        "globPatterns" glob_patterns: Vec<String> = Vec::new(),
        /// The same, as azureml-core calls them.
        "patterns" patterns: Vec<String> = Vec::new(),
    }
}
