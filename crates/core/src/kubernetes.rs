//! What a run asks of Kubernetes, as data: resources and places that a target's configuration and a run definition may say.
//!
//! Invariant: a wish that passed [`KubernetesWish::check`] is well-formed; whether a cluster has what is asked for, the cluster says.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What a run (or a target, for all of its runs) asks of Kubernetes, for each of its nodes. What is left out is the cluster's own default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct KubernetesWish {
    /// Processors, e.g. `4` or `500m`; a request, no limit.
    pub cpus: Option<String>,
    /// Memory, e.g. `16Gi`; request and limit.
    pub memory: Option<String>,
    /// GPUs, of the kind that the target names.
    pub gpus: Option<u32>,
    /// Labels that the node must have.
    pub node_selector: BTreeMap<String, String>,
    /// Taints that are put up with, as `kubectl taint` writes them: `key=value:Effect`, `key:Effect` or `key`.
    pub tolerations: Vec<String>,
    /// The class that says who goes first and who makes room.
    pub priority_class: Option<String>,
}

/// A taint that is put up with, in parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toleration {
    /// Key of the taint.
    pub key: String,
    /// Its value; `None`: any.
    pub value: Option<String>,
    /// Its effect; `None`: any.
    pub effect: Option<String>,
}

/// The longest text in a wish, in characters; Kubernetes' own limit for the longest of them.
const MAX_CHARACTERS: usize = 317;

impl KubernetesWish {
    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// This wish, with what `wish` says instead; labels and tolerations are put together.
    #[must_use]
    pub fn with(&self, wish: &Self) -> Self {
        let either = |one: &Option<String>, other: &Option<String>| one.as_ref().or(other.as_ref()).cloned();
        let mut node_selector = self.node_selector.clone();
        node_selector.extend(wish.node_selector.clone());
        let mut tolerations = self.tolerations.clone();
        tolerations.extend(wish.tolerations.iter().filter(|text| !self.tolerations.contains(text)).cloned());
        Self {
            cpus: either(&wish.cpus, &self.cpus),
            memory: either(&wish.memory, &self.memory),
            gpus: wish.gpus.or(self.gpus),
            node_selector,
            tolerations,
            priority_class: either(&wish.priority_class, &self.priority_class),
        }
    }

    /// Refuses what cannot be meant. Whether Kubernetes takes the rest, Kubernetes says.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Invalid`]; the target is the property in PascalCase, e.g. `Tolerations[0]`.
    pub fn check(&self) -> Result<()> {
        for (property, text) in [("Cpus", &self.cpus), ("Memory", &self.memory)] {
            if let Some(text) = text.as_deref().filter(|text| !is_quantity(text)) {
                return Err(refuse(property, text, "write an amount as Kubernetes does, such as `4`, `500m` or `16Gi`"));
            }
        }
        if let Some(class) = self.priority_class.as_deref().filter(|class| !is_label_part(class) || class.is_empty()) {
            return Err(refuse("PriorityClass", class, "that is no name of a priority class"));
        }
        for (key, value) in &self.node_selector {
            if !is_key(key) || !is_label_part(value) {
                return Err(refuse(&format!("NodeSelector.{key}"), &format!("{key}={value}"), "that is no label of Kubernetes"));
            }
        }
        for (index, text) in self.tolerations.iter().enumerate() {
            toleration(text).map_err(|error| error.with_target(format!("Tolerations[{index}]")))?;
        }
        Ok(())
    }
}

/// Reads a taint that is put up with.
///
/// # Errors
/// [`crate::ErrorKind::Invalid`] if it is none.
pub fn toleration(text: &str) -> Result<Toleration> {
    let (pair, effect) = match text.split_once(':') {
        Some((pair, effect)) => (pair, Some(effect)),
        None => (text, None),
    };
    let (key, value) = match pair.split_once('=') {
        Some((key, value)) => (key, Some(value)),
        None => (pair, None),
    };
    if !is_key(key) || value.is_some_and(|value| !is_label_part(value)) {
        return Err(refuse("", text, "write `key=value:Effect`, `key:Effect` or `key`"));
    }
    if effect.is_some_and(|effect| !matches!(effect, "NoSchedule" | "PreferNoSchedule" | "NoExecute")) {
        return Err(refuse("", text, "the effect must be NoSchedule, PreferNoSchedule or NoExecute"));
    }
    Ok(Toleration { key: key.to_owned(), value: value.map(str::to_owned), effect: effect.map(str::to_owned) })
}

/// Whether Kubernetes takes this as the value of a label.
pub fn is_label_part(text: &str) -> bool {
    let edge = |c: Option<char>| c.is_none_or(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && edge(text.chars().next())
        && edge(text.chars().next_back())
}

/// Whether Kubernetes takes this as the key of a label or a taint: `name` or `domain/name`.
fn is_key(text: &str) -> bool {
    let (domain, name) = text.split_once('/').map_or((None, text), |(domain, name)| (Some(domain), name));
    let is_domain = |domain: &str| {
        !domain.is_empty()
            && domain.len() <= 253
            && domain.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c))
    };
    !name.is_empty() && is_label_part(name) && domain.is_none_or(is_domain)
}

/// Whether this is an amount as Kubernetes writes it, more than nothing.
fn is_quantity(text: &str) -> bool {
    const UNITS: [&str; 14] = ["", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    UNITS.contains(&unit) && text.len() <= 20 && number.parse::<f64>().is_ok_and(|number| number > 0.0)
}

fn refuse(property: &str, text: &str, why: &str) -> Error {
    let shown: String = text.chars().take(MAX_CHARACTERS).collect();
    Error::invalid(format!("`{}` is not possible: {why}", shown.escape_debug())).with_target(property)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_says_what_differs_from_its_target() {
        let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let target = KubernetesWish {
            memory: Some("1Gi".into()),
            node_selector: labels(&[("zone", "a"), ("disk", "ssd")]),
            tolerations: vec!["gpu:NoSchedule".into()],
            ..KubernetesWish::default()
        };
        let run = KubernetesWish {
            memory: Some("4Gi".into()),
            gpus: Some(2),
            node_selector: labels(&[("zone", "b")]),
            tolerations: vec!["gpu:NoSchedule".into(), "spot".into()],
            ..KubernetesWish::default()
        };
        let both = target.with(&run);
        assert_eq!((both.memory.as_deref(), both.gpus), (Some("4Gi"), Some(2)));
        assert_eq!(both.node_selector, labels(&[("zone", "b"), ("disk", "ssd")]));
        assert_eq!(both.tolerations, ["gpu:NoSchedule", "spot"]);
        assert!(KubernetesWish::default().is_empty());
    }

    #[test]
    fn amounts_are_read_as_kubernetes_reads_them() {
        for fine in ["1", "0.5", "500m", "16Gi", "2G", "1024Ki"] {
            assert!(is_quantity(fine), "{fine}");
        }
        for bad in ["", "0", "-1", "16GB", "1 Gi", "Gi", "1.2.3", "1e3x"] {
            assert!(!is_quantity(bad), "{bad}");
        }
    }

    #[test]
    fn tolerations_are_read_as_kubectl_writes_taints() {
        let parts = |text: &str| toleration(text).map(|one| (one.key, one.value.unwrap_or_default(), one.effect.unwrap_or_default()));
        assert_eq!(parts("a/b=c:NoSchedule").unwrap(), ("a/b".into(), "c".into(), "NoSchedule".into()));
        assert_eq!(parts("gpu:NoExecute").unwrap(), ("gpu".into(), String::new(), "NoExecute".into()));
        assert_eq!(parts("spot").unwrap(), ("spot".into(), String::new(), String::new()));
        for bad in ["", ":NoSchedule", "a=b c", "gpu:Never", "A B"] {
            assert!(parts(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let target = |wish: KubernetesWish| wish.check().unwrap_err().target().map(str::to_owned);
        assert_eq!(target(KubernetesWish { cpus: Some("many".into()), ..KubernetesWish::default() }).as_deref(), Some("Cpus"));
        assert_eq!(
            target(KubernetesWish { tolerations: vec!["a".into(), "b:c".into()], ..KubernetesWish::default() }).as_deref(),
            Some("Tolerations[1]")
        );
        let selector = [("zone".to_owned(), "a b".to_owned())].into();
        assert_eq!(target(KubernetesWish { node_selector: selector, ..KubernetesWish::default() }).as_deref(), Some("NodeSelector.zone"));
    }
}
