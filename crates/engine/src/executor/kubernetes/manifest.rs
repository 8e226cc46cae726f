//! The documents of an attempt: its Job, its Secrets, and the order as it is inside a pod.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};
use trainyard_core::{
    Error, Result,
    container::{DEFAULT_REGISTRY, ImageSource},
    definition::Definition,
    ids::AttemptId,
    kubernetes::{KubernetesWish, is_label_part, toleration},
};
use trainyard_wire::native::AttemptOrder;

use super::{
    documents::{ATTEMPT_LABEL, CONTAINER, MANAGED_BY, RUN_LABEL, SERVER_LABEL, TARGET_LABEL},
    target::KubernetesTarget,
    template,
};
use crate::{
    agent::OWN_POD_VARIABLE,
    container::{ContainerSettings, Login},
};

/// Where this program is in a pod. Not below `/trainyard`, which is the program itself in the image that it comes from.
const BIN: &str = "/opt/trainyard/bin";
/// Where a pod's attempt is.
const ATTEMPTS: &str = "/opt/trainyard/attempts";
/// Where the order is put, and put anew.
const NOTES: &str = "/opt/trainyard/notes";
/// Where environments are built and found.
pub const CACHE: &str = "/opt/trainyard/cache";

/// Time for what is left to be delivered after the code has ended, in seconds.
const DELIVERY_SECONDS: u64 = 30;

/// The key of the order in its Secret.
pub(super) const ORDER_KEY: &str = "order.json";
/// The key of the wish that everything is delivered again.
pub(super) const AGAIN_KEY: &str = "again";

/// What all objects of an attempt are called.
pub(super) fn name(attempt: AttemptId) -> String {
    format!("trainyard-{attempt}")
}

/// What the Secret with logins at registries is called.
fn registry_name(attempt: AttemptId) -> String {
    format!("trainyard-{attempt}-registries")
}

/// Whose an object is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owner<'a> {
    pub(super) server: &'a str,
    pub(super) attempt: AttemptId,
    pub(super) run: &'a str,
}

impl Owner<'_> {
    fn metadata(&self, name: &str) -> Value {
        json!({ "name": name, "labels": self.labels(), "annotations": { RUN_LABEL: self.run } })
    }

    fn labels(&self) -> Value {
        let mut labels = BTreeMap::from([
            (MANAGED_BY.0, MANAGED_BY.1.to_owned()),
            (SERVER_LABEL, self.server.to_owned()),
            (ATTEMPT_LABEL, self.attempt.to_string()),
        ]);
        if is_label_part(self.run) {
            labels.insert(RUN_LABEL, self.run.to_owned());
        }
        json!(labels)
    }
}

/// How a run goes into a pod of a target.
pub(super) struct Plan<'a> {
    pub(super) target: &'a KubernetesTarget,
    pub(super) definition: &'a Definition,
    pub(super) wish: KubernetesWish,
    image: &'a str,
}

impl<'a> Plan<'a> {
    /// # Errors
    /// [`trainyard_core::ErrorKind::Invalid`] if no pod can hold it.
    pub(super) fn new(target: &'a KubernetesTarget, definition: &'a Definition) -> Result<Self> {
        let image = match definition.container.as_ref().map(|container| &container.image) {
            None => &target.image,
            Some(ImageSource::Named { reference }) => reference,
            Some(ImageSource::Dockerfile { .. }) => {
                return Err(Error::invalid(format!(
                    "target `{}` is on Kubernetes, where this server builds no images: build the Dockerfile elsewhere and name its image as BaseImage",
                    definition.target
                ))
                .with_target("Configuration.Environment.Docker.BaseDockerfile"));
            }
        };
        let wish = target.wish.with(&definition.kubernetes);
        Ok(Self { target, definition, wish, image })
    }

    /// What the owner of the run should know about how it goes.
    pub(super) fn warning(&self) -> Option<String> {
        use trainyard_core::environment::EnvironmentSpec;
        let mut sentences = Vec::new();
        let builds = !matches!(self.definition.environment, EnvironmentSpec::UserManaged { .. });
        if builds && self.target.cache_volume.is_none() {
            sentences.push(format!(
                "target `{}` keeps no environments: this one is built anew in every pod, unless its operator sets cache_volume",
                self.definition.target
            ));
        }
        if let Some(container) = self.definition.container.as_ref().filter(|container| !container.arguments.is_empty()) {
            sentences.push(format!("Docker.Arguments {:?} are not used: a pod takes none", container.arguments));
        }
        (!sentences.is_empty()).then(|| sentences.join("; "))
    }

    /// The Job of an attempt. `grace_seconds`: between the word that the code is to end and its end.
    pub(super) fn job(&self, owner: Owner<'_>, grace_seconds: u64) -> Value {
        let nodes = self.definition.distribution.node_count;
        let mut pod = self.pod(owner, grace_seconds);
        if let Some(over) = &self.target.template {
            template::merge(&mut pod, over);
        }
        // What this server finds it by is not a template's to change.
        template::merge(&mut pod, &json!({ "metadata": { "labels": owner.labels() }, "spec": { "restartPolicy": "Never" } }));
        let mut metadata = owner.metadata(&name(owner.attempt));
        metadata["labels"][TARGET_LABEL] = json!(self.definition.target);
        json!({
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": metadata,
            "spec": {
                "completionMode": "Indexed",
                "completions": nodes,
                "parallelism": nodes,
                "backoffLimit": 0,
                // A pod that is on its way out is not replaced before it is gone; and then it has failed, which is the end.
                "podReplacementPolicy": "Failed",
                "template": pod,
            },
        })
    }

    fn pod(&self, owner: Owner<'_>, grace_seconds: u64) -> Value {
        let target = self.target;
        let (mut volumes, mut mounts) = self.volumes(owner.attempt);
        for volume in &target.volumes {
            volumes.push(volume.source());
            mounts.push(volume.mount());
        }
        let mut spec = json!({
            "restartPolicy": "Never",
            "enableServiceLinks": false,
            "automountServiceAccountToken": target.service_account.is_some(),
            "terminationGracePeriodSeconds": grace_seconds + DELIVERY_SECONDS,
            "initContainers": [{
                "name": "agent",
                "image": target.agent_image,
                "command": ["/trainyard", "install-agent", BIN],
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "volumeMounts": [{ "name": "trainyard-bin", "mountPath": BIN }],
            }],
            "containers": [{
                "name": CONTAINER,
                "image": self.image,
                "command": self.command(owner.attempt),
                "env": [
                    { "name": OWN_POD_VARIABLE, "value": "yes" },
                    { "name": "POD_IP", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } },
                ],
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "resources": self.resources(),
                "volumeMounts": mounts,
            }],
            "volumes": volumes,
        });
        let pulls: Vec<Value> = target.image_pull_secrets.iter().map(|name| json!({ "name": name })).collect();
        let own_login = self.definition.container.is_some().then(|| json!({ "name": registry_name(owner.attempt) }));
        let optional = [
            ("serviceAccountName", target.service_account.as_ref().map(|name| json!(name))),
            ("nodeSelector", (!self.wish.node_selector.is_empty()).then(|| json!(self.wish.node_selector))),
            ("tolerations", (!self.wish.tolerations.is_empty()).then(|| self.tolerations())),
            ("priorityClassName", self.wish.priority_class.as_ref().map(|name| json!(name))),
            (
                "imagePullSecrets",
                Some(pulls.into_iter().chain(own_login).collect::<Vec<_>>()).filter(|list| !list.is_empty()).map(Value::from),
            ),
        ];
        for (key, value) in optional {
            if let Some(value) = value {
                spec[key] = value;
            }
        }
        json!({ "metadata": { "labels": owner.labels(), "annotations": { RUN_LABEL: owner.run } }, "spec": spec })
    }

    fn command(&self, attempt: AttemptId) -> Vec<String> {
        let program = format!("{BIN}/trainyard");
        let folder = format!("{ATTEMPTS}/{attempt}");
        let mut words = vec![program, "agent".into(), "--attempt-dir".into(), folder, "--notes".into(), NOTES.into()];
        if self.definition.distribution.node_count > 1 {
            // Kubernetes puts the number of the pod in.
            words.extend(["--node".to_owned(), "$(JOB_COMPLETION_INDEX)".to_owned()]);
        }
        words
    }

    fn volumes(&self, attempt: AttemptId) -> (Vec<Value>, Vec<Value>) {
        let empty = |name: &str| json!({ "name": name, "emptyDir": {} });
        let mut cache = self.target.cache_volume.as_ref().map_or_else(|| empty("trainyard-cache"), super::target::Volume::source);
        cache["name"] = json!("trainyard-cache");
        let mut volumes = vec![
            empty("trainyard-bin"),
            empty("trainyard-attempts"),
            cache,
            // The code's user may be anybody, and must read its own order.
            json!({ "name": "trainyard-notes", "secret": { "secretName": name(attempt), "defaultMode": 0o444 } }),
        ];
        let mount = |name: &str, path: &str| json!({ "name": name, "mountPath": path });
        let mut mounts = vec![
            json!({ "name": "trainyard-bin", "mountPath": BIN, "readOnly": true }),
            mount("trainyard-attempts", ATTEMPTS),
            mount("trainyard-cache", CACHE),
            json!({ "name": "trainyard-notes", "mountPath": NOTES, "readOnly": true }),
        ];
        if let Some(bytes) = self.definition.container.as_ref().and_then(|container| container.shm_bytes) {
            volumes.push(json!({ "name": "trainyard-shm", "emptyDir": { "medium": "Memory", "sizeLimit": bytes.to_string() } }));
            mounts.push(mount("trainyard-shm", "/dev/shm"));
        }
        (volumes, mounts)
    }

    fn resources(&self) -> Value {
        let (mut requests, mut limits) = (Map::new(), Map::new());
        if let Some(cpus) = &self.wish.cpus {
            requests.insert("cpu".into(), json!(cpus));
        }
        if let Some(memory) = &self.wish.memory {
            requests.insert("memory".into(), json!(memory));
            limits.insert("memory".into(), json!(memory));
        }
        if let Some(gpus) = self.wish.gpus.filter(|gpus| *gpus > 0) {
            // Without a request of its own it is the limit, which is the only one that is possible.
            limits.insert(self.target.gpu_resource.clone(), json!(gpus.to_string()));
        }
        json!({ "requests": requests, "limits": limits })
    }

    fn tolerations(&self) -> Value {
        let parsed = self.wish.tolerations.iter().filter_map(|text| toleration(text).ok());
        let document = |one: trainyard_core::kubernetes::Toleration| {
            let operator = if one.value.is_some() { "Equal" } else { "Exists" };
            let mut document = json!({ "key": one.key, "operator": operator });
            for (key, value) in [("value", one.value), ("effect", one.effect)] {
                if let Some(value) = value {
                    document[key] = json!(value);
                }
            }
            document
        };
        Value::Array(parsed.map(document).collect())
    }
}

/// The Secrets of an attempt, owned by its Job with the id `uid`: they go when it goes.
///
/// # Errors
/// If the order cannot be written.
pub(super) fn secrets(owner: Owner<'_>, uid: &str, order: &AttemptOrder) -> Result<Vec<Value>> {
    let mut secrets = vec![secret(owner, uid, (&name(owner.attempt), "Opaque"), &notes(order)?)];
    let definition: Definition = serde_json::from_value(order.definition.clone()).map_err(Error::internal)?;
    if definition.container.is_some() {
        let data = json!({ ".dockerconfigjson": STANDARD.encode(logins(order).to_string()) });
        secrets.push(secret(owner, uid, (&registry_name(owner.attempt), "kubernetes.io/dockerconfigjson"), &data));
    }
    Ok(secrets)
}

fn secret(owner: Owner<'_>, uid: &str, (called, kind): (&str, &str), data: &Value) -> Value {
    let mut metadata = owner.metadata(called);
    metadata["ownerReferences"] = json!([{ "apiVersion": "batch/v1", "kind": "Job", "name": name(owner.attempt), "uid": uid, "controller": false, "blockOwnerDeletion": false }]);
    json!({ "apiVersion": "v1", "kind": "Secret", "type": kind, "metadata": metadata, "data": data })
}

/// What the agent finds among its notes, as a Secret holds it.
///
/// # Errors
/// If the order cannot be written.
pub(super) fn notes(order: &AttemptOrder) -> Result<Value> {
    let order = serde_json::to_vec(&inside(order)?).map_err(Error::internal)?;
    Ok(json!({ ORDER_KEY: STANDARD.encode(order) }))
}

/// The order as it stands in a Secret.
pub(super) fn read_order(secret: &Value) -> Option<AttemptOrder> {
    let encoded = secret.pointer(&format!("/data/{ORDER_KEY}"))?.as_str()?;
    serde_json::from_slice(&STANDARD.decode(encoded).ok()?).ok()
}

/// The order for an agent that is inside already: it starts no container, and needs no login for one.
fn inside(order: &AttemptOrder) -> Result<AttemptOrder> {
    let mut definition: Definition = serde_json::from_value(order.definition.clone()).map_err(Error::internal)?;
    definition.container = None;
    Ok(AttemptOrder { definition: serde_json::to_value(definition).map_err(Error::internal)?, containers: Value::Null, ..order.clone() })
}

/// Logins at registries, as Docker writes them.
fn logins(order: &AttemptOrder) -> Value {
    let settings: ContainerSettings = serde_json::from_value(order.containers.clone()).unwrap_or_default();
    let mut auths = Map::new();
    // The first one for a host counts.
    for Login { host, username, password } in settings.logins.iter().rev() {
        // Docker's own registry goes by another name there.
        let host = if host == DEFAULT_REGISTRY { "https://index.docker.io/v1/" } else { host };
        let auth = STANDARD.encode(format!("{username}:{password}"));
        auths.insert(host.to_owned(), json!({ "username": username, "password": password, "auth": auth }));
    }
    json!({ "auths": auths })
}
