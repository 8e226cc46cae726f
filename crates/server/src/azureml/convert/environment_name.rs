//! Names, versions and ids of registered environments (azureml-wire E.2): what may be one, and what was probably meant.

use trainyard_core::{Error, Result};

/// The longest name or version.
const MAX_LENGTH: usize = 255;
/// How many names a sentence offers.
const OFFERED: usize = 3;

/// A name in a workspace, with a version if one was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EnvironmentName {
    pub(crate) name: String,
    pub(crate) version: Option<String>,
}

/// A name as the address or a definition gives it.
///
/// # Errors
/// [`trainyard_core::ErrorKind::Invalid`].
pub(crate) fn checked_name(name: &str) -> Result<&str> {
    let fits = !name.is_empty() && name.len() <= MAX_LENGTH && name.trim() == name && !name.chars().any(char::is_control);
    if fits {
        return Ok(name);
    }
    let rule = "1 to 255 characters, without control characters, without space at its ends";
    Err(Error::invalid(format!("`{}` is not a name for an environment: expected {rule}", shown(name))).with_target("name"))
}

/// A version as the address or a definition gives it.
///
/// # Errors
/// [`trainyard_core::ErrorKind::Invalid`].
pub(crate) fn checked_version(version: &str) -> Result<&str> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '+');
    if !version.is_empty() && version.len() <= MAX_LENGTH && version.chars().all(fits) {
        return Ok(version);
    }
    let rule = "1 to 255 letters, digits, `.`, `-`, `_` and `+`";
    Err(Error::invalid(format!("`{}` is not a version of an environment: expected {rule}", shown(version))).with_target("version"))
}

/// What an `AssetId` names: `azureml:NAME:VERSION`, `azureml:NAME@latest`, or an id whose path holds `environments/NAME/versions/VERSION`.
/// `None`: it is none of these.
pub(crate) fn of_asset_id(id: &str) -> Option<EnvironmentName> {
    let named = |name: &str, version: Option<&str>| {
        let name = percent_encoding::percent_decode_str(name).decode_utf8().ok()?.into_owned();
        (!name.is_empty()).then(|| EnvironmentName { name, version: version.filter(|text| !text.is_empty()).map(str::to_owned) })
    };
    let id = id.trim();
    let segments: Vec<&str> = id.split('/').collect();
    if let Some(at) = segments.iter().rposition(|segment| segment.eq_ignore_ascii_case("environments")) {
        let name = segments.get(at + 1)?;
        let labelled = segments.get(at + 2).is_some_and(|segment| segment.eq_ignore_ascii_case("versions"));
        return match segments.len() - at {
            2 => named(name, None),
            4 if labelled => named(name, segments.get(at + 3).copied()),
            _ => None,
        };
    }
    let (scheme, rest) = id.split_once(':')?;
    if !scheme.eq_ignore_ascii_case("azureml") || rest.contains('/') {
        return None;
    }
    if let Some(name) = rest.strip_suffix("@latest") {
        return named(name, None);
    }
    match rest.rsplit_once(':') {
        Some((name, version)) => named(name, Some(version)),
        None => named(rest, None),
    }
}

/// The end of a sentence about a name that is not there: those that are most like it.
pub(crate) fn nearest(name: &str, known: &[String]) -> String {
    if known.is_empty() {
        return "this workspace has none; register it, or send the environment itself".to_owned();
    }
    let wanted = name.to_lowercase();
    let mut ranked: Vec<(f64, &String)> = known.iter().map(|name| (strsim::jaro_winkler(&wanted, &name.to_lowercase()), name)).collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(b.1)));
    let names: Vec<String> = ranked.iter().take(OFFERED).map(|(_, name)| format!("`{}`", shown(name))).collect();
    format!("the nearest names are {}", names.join(", "))
}

/// As much of a client's word as a sentence repeats.
pub(crate) fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(80).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_form_of_an_id_names_its_environment() {
        let table = [
            ("azureml:train:3", Some(("train", Some("3")))),
            ("AzureML:train@latest", Some(("train", None))),
            ("azureml:train", Some(("train", None))),
            ("azureml://locations/local/workspaces/6f96/environments/train/versions/3", Some(("train", Some("3")))),
            (
                "/subscriptions/s/resourceGroups/g/providers/M/workspaces/w/environments/my%20env/versions/1.0",
                Some(("my env", Some("1.0"))),
            ),
            ("azureml://registries/azureml/environments/AzureML-sklearn/versions/2", Some(("AzureML-sklearn", Some("2")))),
            ("/subscriptions/s/environments/train", Some(("train", None))),
            ("train:3", None),
            ("azureml:", None),
            ("azureml://jobs/train/outputs/1", None),
            ("/environments/train/labels/good", None),
            ("", None),
        ];
        for (id, expected) in table {
            let found = of_asset_id(id);
            let found = found.as_ref().map(|found| (found.name.as_str(), found.version.as_deref()));
            assert_eq!(found, expected, "{id}");
        }
    }

    #[test]
    fn what_was_probably_meant_is_offered_first() {
        let known = ["train-gpu", "AzureML-sklearn-1.0", "tests"].map(str::to_owned);
        assert!(nearest("azureml-sklearn", &known).starts_with("the nearest names are `AzureML-sklearn-1.0`"));
        assert!(nearest("trian-gpu", &known).starts_with("the nearest names are `train-gpu`"));
        assert!(nearest("x", &[]).contains("has none"));
    }

    #[test]
    fn names_and_versions_have_their_rules() {
        for name in ["a", "AzureML-Minimal", "with space/and slash", "é"] {
            assert!(checked_name(name).is_ok(), "{name}");
        }
        for name in ["", " a", "a\n", "a\0b", &"x".repeat(256)] {
            assert_eq!(checked_name(name).expect_err(name).target(), Some("name"));
        }
        assert!(checked_version("2021-06.1+b_2").is_ok());
        for version in ["", "1/2", "../1", "a b", "%"] {
            assert_eq!(checked_version(version).expect_err(version).target(), Some("version"));
        }
    }

    proptest! {
        #[test]
        fn a_name_survives_its_id(name in "[A-Za-z0-9][A-Za-z0-9._-]{0,20}", version in "[0-9]{1,4}") {
            let expected = Some(EnvironmentName { name: name.clone(), version: Some(version.clone()) });
            prop_assert_eq!(of_asset_id(&format!("azureml:{name}:{version}")), expected.clone());
            prop_assert_eq!(of_asset_id(&format!("azureml://locations/l/workspaces/w/environments/{name}/versions/{version}")), expected);
        }

        #[test]
        fn no_id_breaks_the_reader(id in ".{0,80}") {
            if let Some(found) = of_asset_id(&id) {
                prop_assert!(!found.name.is_empty());
            }
        }
    }
}
