use serde_json::{Value, json};
use trainyard_core::{container::ContainerPolicy, ids::ComputeName};
use trainyard_engine::{
    Unseal as _,
    data::{Datastore, S3Keys},
};
use trainyard_wire::azureml::execution::SubmissionEnvelope;

use super::*;
use crate::{
    azureml::convert::definition::{Converted, to_definition},
    sealing::Sealer,
};

fn sealer() -> Sealer {
    Sealer::from_key(&[7; 32]).unwrap()
}

fn datastores() -> Datastores {
    let store = |url: &str, access| Datastore { url: url.into(), access, keys: S3Keys::default() };
    let configured = [
        ("folder", store("/data", DatastoreAccess::ReadWrite)),
        ("frozen", store("/frozen", DatastoreAccess::Read)),
        ("bucket", store("s3://bucket/prefix", DatastoreAccess::ReadWrite)),
        ("web", store("https://u:hunter2@web.example/files", DatastoreAccess::Read)),
    ];
    Datastores::new(configured.map(|(name, store)| (name.to_owned(), store)).into(), "/own".into()).unwrap()
}

fn convert_on(engine: &'static str, section: &str, entries: Value) -> Result<Converted> {
    let document = json!({ "Configuration": { "Script": "a.py", "Target": "here", section: entries } });
    let envelope = SubmissionEnvelope::read(document).unwrap();
    let targets = [TargetRule { name: ComputeName::new("here").unwrap(), containers: ContainerPolicy::WhenAsked, engine }];
    to_definition(&envelope.configuration, Rules { targets: &targets, sealer: &sealer(), datastores: &datastores() })
}

fn convert(section: &str, entries: Value) -> Result<Converted> {
    convert_on("local", section, entries)
}

fn spec(section: &str, entry: Value) -> DataSpec {
    convert(section, json!({ "x": entry })).unwrap().definition.data
}

fn on(store: &str, path: &str) -> Location {
    Location::Datastore { name: store.into(), path: path.into() }
}

#[test]
fn a_data_reference_is_an_input_or_with_upload_an_output() {
    let asked = json!({ "DataStoreName": "Folder", "PathOnDataStore": "/train//set/", "PathOnCompute": "./in/", "Overwrite": true });
    let with = |mode: &str| {
        let mut asked = asked.clone();
        asked["Mode"] = json!(mode);
        spec("DataReferences", asked)
    };
    let mounted = with("mount").inputs.remove(0);
    assert_eq!((mounted.location, mounted.mechanism), (on("folder", "train/set"), InputMechanism::MountWritable));
    assert_eq!((mounted.path_on_compute.as_deref(), mounted.overwrite), (Some("in"), true));
    assert_eq!(with("Download").inputs[0].mechanism, InputMechanism::Download);
    let uploaded = with("Upload").outputs.remove(0);
    assert_eq!(
        (uploaded.location, uploaded.mechanism, uploaded.section),
        (on("folder", "train/set"), OutputMechanism::Upload, Section::References)
    );
    let frozen = spec("DataReferences", json!({ "DataStoreName": "frozen", "Mode": "Mount" }));
    assert_eq!(frozen.inputs[0].mechanism, InputMechanism::Mount, "it may not be written to");
}

#[test]
fn data_comes_from_datastores_and_from_addresses() {
    let location = |location: Value| spec("Data", json!({ "DataLocation": location, "Mechanism": "Download" })).inputs.remove(0).location;
    assert_eq!(location(json!({ "DataPath": { "DatastoreName": "bucket", "RelativePath": "a" } })), on("bucket", "a"));
    assert_eq!(location(json!({ "Uri": { "Path": "azureml://datastores/folder/paths/a/b" } })), on("folder", "a/b"));
    assert_eq!(location(json!({ "Uri": { "Path": "s3://bucket/prefix/a" } })), on("bucket", "a"), "the datastore has the keys");
    let path = Location::Url { shown: "/somewhere/file".into(), sealed: None };
    assert_eq!(location(json!({ "Uri": { "Path": "/somewhere/file", "IsFile": true }, "Dataset": null })), path);
}

#[test]
fn the_secrets_of_an_address_are_sealed_and_not_shown_again() {
    let uri = json!({ "DataLocation": { "Uri": { "Path": "https://u:hunter2@h.example/a.csv?sig=hunter2" } } });
    let converted = convert("Data", json!({ "x": uri })).unwrap();
    let Location::Url { shown, sealed: Some(sealed) } = &converted.definition.data.inputs[0].location else { panic!("sealed") };
    assert_eq!(shown, "https://h.example/a.csv");
    assert_eq!(sealer().unseal(sealed).unwrap(), "https://u:hunter2@h.example/a.csv?sig=hunter2");
    assert_eq!(converted.document["data"]["x"]["dataLocation"]["uri"]["path"], "https://h.example/a.csv");
    assert!(!format!("{converted:?}").contains("hunter2"));
}

#[test]
fn an_output_goes_where_it_says_or_where_the_v1_service_put_it() {
    let output = |entry: Value| spec("OutputData", entry).outputs.remove(0);
    let plain = output(json!({}));
    assert_eq!((plain.location, plain.mechanism), (on(DEFAULT_DATASTORE, DEFAULT_OUTPUT), OutputMechanism::Upload));
    let asked = output(json!({
        "OutputLocation": { "DataPath": { "DatastoreName": "bucket", "RelativePath": "models/{run-id}" } }, "Mechanism": "upload",
        "AdditionalOptions": {
            "PathOnCompute": "out", "UploadOptions": { "Overwrite": true, "SourceGlobs": { "GlobPatterns": ["*.pt"] } },
            "RegistrationOptions": { "Name": null, "DatasetRegistrationOptions": { "AdditionalTransformation": null } }
        }
    }));
    assert_eq!((asked.location, asked.path_on_compute.as_deref()), (on("bucket", "models/{run-id}"), Some("out")));
    assert_eq!((asked.overwrite, asked.globs), (true, vec!["*.pt".to_owned()]));
    assert_eq!(output(json!({ "Mechanism": "Mount" })).mechanism, OutputMechanism::Mount);
}

/// Each line: the section, the entry, and a part of the sentence that refuses it.
#[test]
fn what_cannot_be_meant_is_refused_by_its_property() {
    let uri = |path: &str| json!({ "DataLocation": { "Uri": { "Path": path } }, "Mechanism": "Download" });
    let table = [
        ("DataReferences", json!({}), "Configuration.DataReferences.x.DataStoreName is missing"),
        (
            "DataReferences",
            json!({ "DataStoreName": "nope" }),
            "Configuration.DataReferences.x.DataStoreName = `nope` is not configured; known datastores: bucket, folder, frozen, web, workspaceblobstore",
        ),
        (
            "DataReferences",
            json!({ "DataStoreName": "folder", "PathOnDataStore": "../x" }),
            "PathOnDataStore leads outside: `..` is not allowed",
        ),
        (
            "DataReferences",
            json!({ "DataStoreName": "folder", "PathOnCompute": "/tmp/x" }),
            "PathOnCompute = `/tmp/x` is not below the working directory",
        ),
        ("DataReferences", json!({ "DataStoreName": "folder", "PathOnCompute": "a/../../x" }), "PathOnCompute = `a/../../x` leads outside"),
        ("DataReferences", json!({ "DataStoreName": "folder", "PathOnCompute": "C:\\x" }), "is not below the working directory"),
        (
            "DataReferences",
            json!({ "DataStoreName": "bucket", "Mode": "Mount" }),
            "Mode = Mount is not possible: datastore `bucket` is not a folder that machines see; say Download",
        ),
        ("DataReferences", json!({ "DataStoreName": "frozen", "Mode": "Upload" }), "nothing can be written to datastore `frozen`"),
        ("DataReferences", json!({ "DataStoreName": "web", "Mode": "Download" }), "names no file of datastore `web`"),
        ("Data", json!({}), "Configuration.Data.x.DataLocation is missing"),
        ("Data", json!({ "DataLocation": {} }), "Configuration.Data.x.DataLocation is empty"),
        (
            "Data",
            json!({ "DataLocation": { "Dataset": { "Name": "iris", "Version": "1" } } }),
            "names a dataset, and none are registered on this server",
        ),
        ("Data", json!({ "DataLocation": { "Uri": { "Path": "/x" } }, "Mechanism": "Hdfs" }), "Mechanism = Hdfs is not possible"),
        (
            "Data",
            json!({ "DataLocation": { "Uri": { "Path": "https://h/x" } }, "Mechanism": "Mount" }),
            "Mechanism = Mount is not possible: `https://h/x`",
        ),
        (
            "Data",
            json!({ "DataLocation": { "Uri": { "Path": "/x" }, "DataPath": { "DatastoreName": "folder" } } }),
            "has DataPath and Uri: give one",
        ),
        (
            "Data",
            json!({ "DataLocation": { "Uri": { "Path": "/x" } }, "EnvironmentVariableName": "A=B" }),
            "EnvironmentVariableName is not a variable",
        ),
        ("Data", uri("data/x.csv"), "= `data/x.csv` cannot be reached: it must be an absolute path"),
        ("Data", uri("wasbs://c:hunter2@h/x?hunter2"), "= `wasbs://h/x` cannot be reached"),
        ("Data", uri("s3://other/x"), "= `s3://other/x` lies in no datastore of this server"),
        ("Data", uri("s3://bucket/prefix/../x"), "leads outside"),
        ("Data", uri("/data/../etc/x"), "holds `..`"),
        ("Data", uri("https://h/folder/"), "names no file of `https://h/folder/`"),
        ("OutputData", json!({ "Mechanism": "Link" }), "Mechanism = Link is not possible; say Upload or Mount"),
        (
            "OutputData",
            json!({ "AdditionalOptions": { "RegistrationOptions": { "Name": "d" } } }),
            "asks for a dataset, and this server registers none",
        ),
        ("OutputData", json!({ "OutputLocation": { "Uri": { "Path": "https://h/x" } } }), "nothing can be written to `https://h/x`"),
        ("OutputData", json!({ "OutputLocation": { "DataPath": { "DatastoreName": "bucket" } }, "Mechanism": "Mount" }), "say Upload"),
    ];
    for (section, entry, part) in table {
        let error = convert(section, json!({ "x": entry })).unwrap_err();
        assert!(error.message().contains(part), "{section}: {error}");
        assert!(!error.message().contains("hunter2"), "{error}");
        assert!(error.target().is_some_and(|target| target.starts_with(&format!("Configuration.{section}"))), "{:?}", error.target());
    }
    let error = convert("Data", json!({ "a b": {} })).unwrap_err();
    assert!(error.message().contains("Configuration.Data: `a b` is not a name"), "{error}");
}

#[test]
fn two_things_are_not_at_one_place() {
    let at = |path: &str| json!({ "DataLocation": { "Uri": { "Path": "/x" } }, "PathOnCompute": path, "Mechanism": "Mount" });
    let error = convert("Data", json!({ "a": at("in"), "b": at("in/b") })).unwrap_err();
    assert_eq!(error.message(), "Configuration.Data.b is to be at `in/b`, where Configuration.Data.a is: give each a place of its own");
    assert!(convert("Data", json!({ "a": at("in"), "b": at("in2") })).is_ok());
}

#[test]
fn the_servers_own_folder_is_for_runs_on_its_machine() {
    let reference = || json!({ "x": { "DataStoreName": DEFAULT_DATASTORE } });
    assert!(convert_on("local", "DataReferences", reference()).is_ok());
    let error = convert_on("slurm", "DataReferences", reference()).unwrap_err();
    assert!(
        error.message().contains("runs of target `here` are on other machines")
            && error.message().contains("[datastore.workspaceblobstore]"),
        "{error}"
    );
    assert!(convert_on("slurm", "DataReferences", json!({ "x": { "DataStoreName": "folder" } })).is_ok());
}
