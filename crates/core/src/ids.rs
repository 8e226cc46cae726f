//! Names and ids as types that cannot be wrong: parsed once at the edge, passed around as they are.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Error, Result};

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self> {
                Uuid::parse_str(text).map(Self).map_err(|_| {
                    Error::invalid(format!("`{text}` is not a {}: expected a GUID such as 6f9619ff-8b86-4d01-b42d-00cf4fc964ff", stringify!($name)))
                })
            }
        }
    };
}

uuid_id!(
    /// A workspace.
    WorkspaceId
);
uuid_id!(
    /// An experiment.
    ExperimentId
);
uuid_id!(
    /// The tenant: one per server.
    TenantId
);
uuid_id!(
    /// An application (service principal): the `client_id` of a token request.
    AppId
);
uuid_id!(
    /// One try at executing a run. The outside world (process, job) is named after it.
    AttemptId
);

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks the rule and wraps the text; [`crate::ErrorKind::Invalid`] names the rule otherwise.
            pub fn new(text: impl Into<String>) -> Result<Self> {
                let text = text.into();
                let valid: fn(&str) -> bool = $valid;
                if valid(&text) {
                    Ok(Self(text))
                } else {
                    let shown: String = text.chars().take(80).collect();
                    Err(Error::invalid(format!("`{shown}` is not a valid {}: {}", $what, $rule)))
                }
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;
            fn try_from(text: String) -> Result<Self> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
    };
}

/// `[a-zA-Z0-9]` first, then letters, digits, `_` and `-`, in all between `min` and `max` characters.
/// Letters are ASCII: the service's `\w` is wider, but these names end up in paths and job names.
fn word_like(text: &str, min: usize, max: usize) -> bool {
    let bytes = text.as_bytes();
    (min..=max).contains(&bytes.len())
        && bytes[0].is_ascii_alphanumeric()
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

text_id!(
    /// An experiment's name (azureml-wire H.2).
    ExperimentName,
    "experiment name",
    "it has 1 to 255 characters, starts with a letter or digit and goes on with letters, digits, `_` and `-`",
    |text| word_like(text, 1, 255)
);
text_id!(
    /// A workspace's name (azureml-wire H.2).
    WorkspaceName,
    "workspace name",
    "it has 3 to 33 characters, starts with a letter or digit and goes on with letters, digits, `_` and `-`",
    |text| word_like(text, 3, 33)
);
text_id!(
    /// A run's id, unique within its workspace (azureml-wire D.1).
    RunId,
    "run id",
    "it has 1 to 256 characters, starts with a letter or digit and goes on with letters, digits, `_` and `-`",
    |text| word_like(text, 1, 256)
);
text_id!(
    /// The name of a compute target, as definitions and the configuration use it.
    ComputeName,
    "compute target name",
    "it has 1 to 64 characters, starts with a letter or digit and goes on with letters, digits, `_` and `-`",
    |text| word_like(text, 1, 64)
);
text_id!(
    /// SHA-256 of some bytes, 64 lower-case hexadecimal digits: the address of a blob.
    Digest,
    "digest",
    "it has 64 lower-case hexadecimal digits",
    |text| text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
);
text_id!(
    /// Canonical hash of an environment: the first half of a SHA-256, 32 lower-case hexadecimal digits. It is part of paths that
    /// scripts start with (`#!`), which Linux cuts at 255 bytes.
    EnvironmentHash,
    "environment hash",
    "it has 32 lower-case hexadecimal digits",
    |text| text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
);

/// The three names that address a workspace. Subscription and resource group are plain text here; the wire
/// compares them without case, as Azure Resource Manager does.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WorkspacePath {
    /// Subscription id, normally a GUID.
    pub subscription_id: String,
    /// Resource group name.
    pub resource_group: String,
    /// Workspace name.
    pub workspace_name: String,
}

impl WorkspacePath {
    /// The ARM id: `/subscriptions/{sub}/resourceGroups/{rg}/providers/Microsoft.MachineLearningServices/workspaces/{ws}`.
    pub fn arm_id(&self) -> String {
        format!(
            "/subscriptions/{}/resourceGroups/{}/providers/Microsoft.MachineLearningServices/workspaces/{}",
            self.subscription_id, self.resource_group, self.workspace_name
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experiment_names_follow_the_wire_rule() {
        let long = "x".repeat(255);
        for good in ["new_experiment", "a", "0-9_A", long.as_str()] {
            assert!(ExperimentName::new(good).is_ok(), "{good}");
        }
        let too_long = "x".repeat(256);
        for bad in ["", "_a", "-a", "a b", "a/b", "é", "a.b", too_long.as_str()] {
            let error = ExperimentName::new(bad).unwrap_err();
            assert!(error.message().contains("is not a valid experiment name"), "{error}");
        }
    }

    #[test]
    fn a_workspace_knows_its_arm_id() {
        let path = WorkspacePath { subscription_id: "s".into(), resource_group: "g".into(), workspace_name: "w".into() };
        assert_eq!(path.arm_id(), "/subscriptions/s/resourceGroups/g/providers/Microsoft.MachineLearningServices/workspaces/w");
    }
}
