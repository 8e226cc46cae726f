//! What the user asked for, reduced to what this server acts on.
//!
//! A dialect parses its own document (keeping every field for the echo), validates it and converts it to a
//! [`Definition`]. Nothing below the dialect looks at the document again.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use self::distribution::{Communication, Distribution, TorchBackend};
use crate::{
    container::ContainerSpec, data::DataSpec, environment::EnvironmentSpec, ids::ComputeName, kubernetes::KubernetesWish, run::RetryWish,
    slurm::SlurmWish,
};

pub mod distribution;

/// Everything needed to execute a run, apart from its snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// What is started.
    pub entry: Entry,
    /// Arguments after the script (or command), as given.
    pub arguments: Vec<String>,
    /// Where it runs.
    pub target: ComputeName,
    /// The framework named, for `AZUREML_FRAMEWORK` and for display.
    pub framework: Framework,
    /// The environment it runs in.
    pub environment: EnvironmentSpec,
    /// The container it runs in, the environment inside; `None`: on the machine itself.
    #[serde(default)]
    pub container: Option<ContainerSpec>,
    /// Variables for the process: the environment's own, overridden by the run's.
    pub environment_variables: BTreeMap<String, String>,
    /// Running time (not waiting time) after which the run is stopped, in seconds; `None`: no limit.
    pub max_run_duration_seconds: Option<u64>,
    /// Higher goes first; 0 unless asked for.
    pub priority: i64,
    /// What is kept of the working directory.
    pub history: History,
    /// How often it is tried again, where that differs from the target's rule.
    #[serde(default)]
    pub retries: RetryWish,
    /// What it asks of Slurm, where its target is one and its configuration says something else.
    #[serde(default, skip_serializing_if = "SlurmWish::is_empty")]
    pub slurm: SlurmWish,
    /// What it asks of Kubernetes, likewise.
    #[serde(default, skip_serializing_if = "KubernetesWish::is_empty")]
    pub kubernetes: KubernetesWish,
    /// On how many nodes, in how many processes, and how these talk.
    #[serde(default, skip_serializing_if = "Distribution::is_single")]
    pub distribution: Distribution,
    /// The data that it reads and writes.
    #[serde(default, skip_serializing_if = "DataSpec::is_empty")]
    pub data: DataSpec,
}

/// What is started in the working directory, which is a copy of the snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Entry {
    /// A Python script of the snapshot, by its path relative to the snapshot's root.
    Script {
        /// E.g. `train/main.py`.
        path: String,
    },
    /// A command: one element is run by the shell, several are an argv.
    Command {
        /// The words.
        words: Vec<String>,
    },
}

/// The framework of a definition (azureml-wire D.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Framework {
    /// Plain Python.
    Python,
    /// Spark; refused at submission.
    PySpark,
    /// CNTK, run as plain Python.
    Cntk,
    /// TensorFlow, run as plain Python when not distributed.
    TensorFlow,
    /// PyTorch, run as plain Python when not distributed.
    PyTorch,
}

/// Which files of the working directory become artifacts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// Whether `outputs/` is collected.
    pub output_collection: bool,
    /// Folders that are streamed while the run goes on, relative to the working directory; `logs` unless said otherwise.
    pub directories_to_watch: Vec<String>,
}

impl Default for History {
    fn default() -> Self {
        Self { output_collection: true, directories_to_watch: vec!["logs".into()] }
    }
}
