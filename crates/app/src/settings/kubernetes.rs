//! The keys of `[compute.NAME]` that are for Kubernetes, and what they become.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Deserializer};
use trainyard_core::kubernetes::KubernetesWish;
use trainyard_engine::executor::kubernetes::{KubernetesSettings, KubernetesTarget, Volume, read_template};

use super::sections::ComputeSection;

/// Part of `[compute.NAME]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct KubernetesKeys {
    /// See [`KEYS`](super::KEYS).
    pub kubeconfig: Option<PathBuf>,
    /// See [`KEYS`](super::KEYS).
    pub context: Option<String>,
    /// See [`KEYS`](super::KEYS).
    pub namespace: Option<String>,
    /// See [`KEYS`](super::KEYS).
    pub image: Option<String>,
    /// See [`KEYS`](super::KEYS).
    pub agent_image: Option<String>,
    /// See [`KEYS`](super::KEYS).
    pub image_pull_secrets: Vec<String>,
    /// See [`KEYS`](super::KEYS).
    pub image_wait_seconds: u64,
    /// See [`KEYS`](super::KEYS).
    pub service_account: Option<String>,
    /// See [`KEYS`](super::KEYS).
    pub node_selector: BTreeMap<String, String>,
    /// See [`KEYS`](super::KEYS).
    pub tolerations: Vec<String>,
    /// See [`KEYS`](super::KEYS).
    pub priority_class: Option<String>,
    /// See [`KEYS`](super::KEYS).
    pub gpu_resource: String,
    /// See [`KEYS`](super::KEYS).
    pub volumes: Vec<String>,
    /// See [`KEYS`](super::KEYS).
    pub cache_volume: Option<String>,
    /// See [`KEYS`](super::KEYS).
    pub pod_template: Option<PathBuf>,
}

impl Default for KubernetesKeys {
    fn default() -> Self {
        Self {
            kubeconfig: None,
            context: None,
            namespace: None,
            image: None,
            agent_image: None,
            image_pull_secrets: Vec::new(),
            image_wait_seconds: 300,
            service_account: None,
            node_selector: BTreeMap::new(),
            tolerations: Vec::new(),
            priority_class: None,
            gpu_resource: "nvidia.com/gpu".into(),
            volumes: Vec::new(),
            cache_volume: None,
            pod_template: None,
        }
    }
}

/// Runs of one target that may be in Kubernetes at once, unless the configuration says otherwise: each of them is some objects in its memory.
pub(super) const KUBERNETES_SLOTS: u32 = 500;

impl ComputeSection {
    /// How its cluster is reached. Paths in it are relative to `folder`, that of the configuration.
    pub fn kubernetes(&self, folder: &Path) -> KubernetesSettings {
        let keys = &self.kubernetes;
        KubernetesSettings {
            kubeconfig: keys.kubeconfig.as_ref().map(|path| folder.join(path)),
            context: keys.context.clone(),
            namespace: keys.namespace.clone(),
        }
    }

    /// How its runs go into pods.
    ///
    /// # Errors
    /// If a key that it cannot do without is missing, or cannot be meant.
    pub fn kubernetes_target(&self, folder: &Path) -> Result<KubernetesTarget> {
        let keys = &self.kubernetes;
        let wish = self.kubernetes_wish()?;
        wish.check().map_err(|error| anyhow::anyhow!("{}: {error}", error.target().unwrap_or_default()))?;
        let (Some(image), Some(agent_image)) = (keys.image.clone(), keys.agent_image.clone()) else {
            bail!("`engine` is \"kubernetes\" and `image` or `agent_image` is missing; deploy/kubernetes/README.md says what they are");
        };
        let volumes = keys.volumes.iter().enumerate().map(|(number, text)| Volume::parse(text, number)).collect::<Result<_, _>>()?;
        Ok(KubernetesTarget {
            image,
            agent_image,
            wish,
            gpu_resource: keys.gpu_resource.clone(),
            service_account: keys.service_account.clone(),
            image_pull_secrets: keys.image_pull_secrets.clone(),
            volumes,
            cache_volume: keys.cache_volume.as_deref().map(Volume::parse_cache).transpose()?,
            template: keys.pod_template.as_ref().map(|path| read_template(&folder.join(path))).transpose()?,
            image_wait_seconds: keys.image_wait_seconds,
        })
    }

    fn kubernetes_wish(&self) -> Result<KubernetesWish> {
        let keys = &self.kubernetes;
        let gpus = match self.gpus.trim() {
            super::sections::NO_GPUS => None,
            number => Some(number.parse().with_context(|| format!("`gpus` is `{number}`: with Kubernetes, say how many each run gets"))?),
        };
        Ok(KubernetesWish {
            cpus: self.cpus.clone(),
            memory: self.memory.clone(),
            gpus,
            node_selector: keys.node_selector.clone(),
            tolerations: keys.tolerations.clone(),
            priority_class: keys.priority_class.clone(),
        })
    }
}

/// A text that people write as a number where it is one.
pub(super) fn text_or_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Text(String),
        Whole(i64),
        Fraction(f64),
    }
    Ok(match Either::deserialize(deserializer)? {
        Either::Text(text) => text,
        Either::Whole(number) => number.to_string(),
        Either::Fraction(number) => number.to_string(),
    })
}

/// The same, where it may be left out.
pub(super) fn optional_text_or_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    text_or_number(deserializer).map(Some)
}
