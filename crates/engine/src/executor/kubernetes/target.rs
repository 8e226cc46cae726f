//! What the configuration says about the pods of one compute target.

use std::path::Path;

use serde_json::{Value, json};
use trainyard_core::{Error, Result, kubernetes::KubernetesWish};

use super::template;

/// How the runs of a target go into pods.
#[derive(Clone, Debug, Default)]
pub struct KubernetesTarget {
    /// The image of runs that name none.
    pub image: String,
    /// The image that holds this program as `/trainyard`.
    pub agent_image: String,
    /// What its runs ask for, unless they say otherwise.
    pub wish: KubernetesWish,
    /// What GPUs are called on its nodes, e.g. `nvidia.com/gpu`.
    pub gpu_resource: String,
    /// As whom pods may speak to Kubernetes; `None`: they may not.
    pub service_account: Option<String>,
    /// Secrets with logins at registries.
    pub image_pull_secrets: Vec<String>,
    /// What pods see beside their own.
    pub volumes: Vec<Volume>,
    /// Where environments are kept; `None`: nowhere.
    pub cache_volume: Option<Volume>,
    /// What is laid over every pod.
    pub template: Option<Value>,
    /// How long an image that cannot be had is waited for, in seconds.
    pub image_wait_seconds: u64,
}

/// Something that pods see: `KIND:NAME:/path[:ro]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    name: String,
    source: Value,
    path: String,
    read_only: bool,
}

impl Volume {
    /// Reads `pvc:NAME:/path[:ro]`, `host:/from:/path[:ro]`, `configmap:NAME:/path`, `secret:NAME:/path` or `nfs:SERVER:/from:/path[:ro]`; `number` tells
    /// it apart from the others of its target.
    ///
    /// # Errors
    /// [`trainyard_core::ErrorKind::Invalid`] if it is none of these.
    pub fn parse(text: &str, number: usize) -> Result<Self> {
        let (text, read_only) = text.strip_suffix(":ro").map_or((text, false), |text| (text, true));
        let parts: Vec<&str> = text.split(':').collect();
        let (source, path) = match parts.as_slice() {
            ["pvc", claim, path] => (json!({ "persistentVolumeClaim": { "claimName": claim } }), path),
            ["host", from, path] if from.starts_with('/') => (json!({ "hostPath": { "path": from } }), path),
            ["configmap", name, path] => (json!({ "configMap": { "name": name } }), path),
            ["secret", name, path] => (json!({ "secret": { "secretName": name } }), path),
            ["nfs", server, from, path] if from.starts_with('/') => (json!({ "nfs": { "server": server, "path": from } }), path),
            _ => return Err(unreadable(text)),
        };
        if !path.starts_with('/') || path.starts_with("/opt/trainyard") || parts[1].is_empty() {
            return Err(unreadable(text));
        }
        Ok(Self { name: format!("volume-{number}"), source, path: (*path).to_owned(), read_only })
    }

    /// Reads the same without a path, for where environments are kept.
    ///
    /// # Errors
    /// [`trainyard_core::ErrorKind::Invalid`] if it is none of these.
    pub fn parse_cache(text: &str) -> Result<Self> {
        Self::parse(&format!("{text}:/cache"), 0).map_err(|_| {
            Error::invalid(format!("`{text}` is no place for environments: expected `pvc:NAME`, `host:/from` or `nfs:SERVER:/from`"))
        })
    }

    /// As a pod lists it.
    pub(super) fn source(&self) -> Value {
        let mut source = self.source.clone();
        source["name"] = json!(self.name);
        source
    }

    /// As a container mounts it.
    pub(super) fn mount(&self) -> Value {
        json!({ "name": self.name, "mountPath": self.path, "readOnly": self.read_only })
    }
}

fn unreadable(text: &str) -> Error {
    Error::invalid(format!(
        "`{text}` is no volume: expected `pvc:NAME:/path[:ro]`, `host:/from:/path[:ro]`, `configmap:NAME:/path`, `secret:NAME:/path` or \
         `nfs:SERVER:/from:/path[:ro]`, with a path outside /opt/trainyard"
    ))
}

/// Reads a pod template from a YAML file.
///
/// # Errors
/// If it cannot be read, or says what a template may not.
pub fn read_template(path: &Path) -> Result<Value> {
    let about = || format!("the pod template `{}`", path.display());
    let text = std::fs::read_to_string(path).map_err(|error| Error::invalid(format!("{} cannot be read", about())).with_source(error))?;
    let value: Value = serde_saphyr::from_str(&text).map_err(|error| Error::invalid(format!("{} is no YAML: {error}", about())))?;
    template::check(&value).map_err(|error| Error::invalid(format!("{}: {}", about(), error.message())))?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_read_as_they_are_written() {
        let volume = Volume::parse("pvc:data:/data:ro", 3).unwrap();
        assert_eq!(volume.source(), json!({ "name": "volume-3", "persistentVolumeClaim": { "claimName": "data" } }));
        assert_eq!(volume.mount(), json!({ "name": "volume-3", "mountPath": "/data", "readOnly": true }));
        assert_eq!(
            Volume::parse("nfs:host.example:/export:/data", 0).unwrap().source()["nfs"],
            json!({ "server": "host.example", "path": "/export" })
        );
        assert_eq!(Volume::parse_cache("host:/var/cache").unwrap().source()["hostPath"], json!({ "path": "/var/cache" }));
        for bad in ["", "data:/data", "pvc::/data", "pvc:data:data", "host:from:/data", "pvc:data:/opt/trainyard/bin", "floppy:a:/b"] {
            assert!(Volume::parse(bad, 0).is_err(), "{bad}");
        }
        assert!(Volume::parse_cache("pvc").is_err());
    }

    #[test]
    fn a_template_is_yaml_and_what_is_wrong_with_it_is_said_with_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pod.yaml");
        std::fs::write(&path, "spec:\n  hostNetwork: true\n  containers:\n  - name: run\n    securityContext: {runAsUser: 1000}\n")
            .unwrap();
        assert_eq!(read_template(&path).unwrap()["spec"]["containers"][0]["securityContext"]["runAsUser"], 1000);
        std::fs::write(&path, "spec: [").unwrap();
        assert!(read_template(&path).unwrap_err().message().contains("pod.yaml` is no YAML"));
        std::fs::write(&path, "spec: {restartPolicy: Always}").unwrap();
        assert!(read_template(&path).unwrap_err().message().contains("pod.yaml`: `spec.restartPolicy`"));
    }
}
