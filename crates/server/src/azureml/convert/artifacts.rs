//! Artifacts between the store and the wire (azureml-wire C.9).

use std::collections::BTreeMap;

use trainyard_core::ids::RunId;
use trainyard_store::artifacts::Artifact;
use trainyard_wire::azureml::{
    artifacts::{Artifact as ArtifactDto, ContentInfo, DataPath},
    time::UtcTime,
};

/// The origin of the files of runs; there are no other artifacts yet.
pub(crate) const RUN_ORIGIN: &str = "ExperimentRun";
/// The datastore that artifacts are said to be in.
const DATASTORE: &str = "workspaceartifactstore";

/// The container of a run's files.
pub(crate) fn container_of(run: &RunId) -> String {
    format!("dcid.{run}")
}

/// `{origin}/{container}/{path}`.
pub(crate) fn artifact_id(artifact: &Artifact) -> String {
    format!("{RUN_ORIGIN}/{}/{}", artifact.container, artifact.path)
}

/// Changes with the content: the address of the bytes, or how far they have grown.
pub(crate) fn etag(artifact: &Artifact) -> String {
    match &artifact.digest {
        Some(digest) => format!("\"{}\"", digest.as_str()),
        None => format!("\"{}-{}\"", artifact.updated_us, artifact.size_bytes),
    }
}

/// An artifact as clients see it.
pub(crate) fn to_dto(artifact: &Artifact) -> ArtifactDto {
    let id = artifact_id(artifact);
    let data_path =
        DataPath { data_store_name: Some(DATASTORE.into()), relative_path: Some(id.clone()), sql_data_path: None, ..DataPath::default() };
    ArtifactDto {
        artifact_id: Some(id),
        origin: Some(RUN_ORIGIN.into()),
        container: Some(artifact.container.clone()),
        path: Some(artifact.path.clone()),
        etag: Some(etag(artifact)),
        created_time: Some(UtcTime::from_microseconds(artifact.created_us)),
        data_path: Some(data_path),
        ..ArtifactDto::default()
    }
}

/// Where to read an artifact.
pub(crate) fn to_content_info(artifact: &Artifact, content_uri: String) -> ContentInfo {
    ContentInfo {
        content_uri,
        origin: RUN_ORIGIN.into(),
        container: artifact.container.clone(),
        path: artifact.path.clone(),
        tags: BTreeMap::new(),
    }
}

/// What kind of content a path says it has. Only plain text is told, with its character set, so that clients that decode by the header
/// read logs right; nothing is ever told to be a page that a browser would run.
pub(crate) fn content_type(path: &str) -> &'static str {
    match path.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase()).as_deref() {
        Some("txt" | "log" | "out" | "err" | "csv" | "md" | "yml" | "yaml") => "text/plain; charset=utf-8",
        Some("json") => "application/json; charset=utf-8",
        Some("png") => "image/png",
        Some("jpg" | "jpeg") => "image/jpeg",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use trainyard_core::ids::{Digest, WorkspaceId};
    use uuid::Uuid;

    use super::*;

    fn artifact(digest: Option<Digest>) -> Artifact {
        Artifact {
            workspace: WorkspaceId(Uuid::from_u128(1)),
            container: "dcid.r1".into(),
            path: "outputs/a.txt".into(),
            size_bytes: 5,
            digest,
            attempt: None,
            created_us: 1_733_431_493_000_000,
            updated_us: 7,
        }
    }

    #[test]
    fn an_artifact_is_written_as_the_service_does() {
        let digest = "a".repeat(64);
        assert_eq!(
            serde_json::to_value(to_dto(&artifact(Some(Digest::new(digest.clone()).unwrap())))).unwrap(),
            json!({
                "artifactId": "ExperimentRun/dcid.r1/outputs/a.txt", "origin": "ExperimentRun", "container": "dcid.r1",
                "path": "outputs/a.txt", "etag": format!("\"{digest}\""), "createdTime": "2024-12-05T20:44:53Z",
                "dataPath": {
                    "dataStoreName": "workspaceartifactstore", "relativePath": "ExperimentRun/dcid.r1/outputs/a.txt", "sqlDataPath": null
                },
                "tags": {}
            })
        );
    }

    #[test]
    fn the_tag_of_a_growing_file_changes_as_it_grows() {
        let (short, long) = (artifact(None), Artifact { size_bytes: 6, ..artifact(None) });
        assert_ne!(etag(&short), etag(&long));
    }

    #[test]
    fn only_harmless_kinds_of_content_are_told() {
        assert_eq!(content_type("azureml-logs/70_driver_log.txt"), "text/plain; charset=utf-8");
        assert_eq!(content_type("outputs/plot.PNG"), "image/png");
        for other in ["outputs/page.html", "outputs/drawing.svg", "outputs/model.pkl", "outputs/README"] {
            assert_eq!(content_type(other), "application/octet-stream", "{other}");
        }
    }
}
