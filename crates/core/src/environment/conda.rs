//! Reading `CondaDependencies` (azureml-wire D.4): a conda environment file as JSON.
//!
//! Acted on are Python itself, pip, setuptools and wheel on the conda side, and one pip list. Everything else is refused
//! with the place in the document and what to do about it.

use serde_json::{Map, Value};

use super::{PythonEnvironment, VersionSpec, requirement::PipLine};
use crate::{Error, ErrorKind, Result};

/// A conda specification, read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CondaSpecification {
    /// The name it gives itself; it identifies nothing.
    pub name: Option<String>,
    /// What is to be built.
    pub environment: PythonEnvironment,
    /// The channels it names, in order.
    pub channels: Vec<String>,
    /// Sentences for the run's warnings: what was read and is not used.
    pub warnings: Vec<String>,
}

/// Reads a conda specification, e.g. `{"name": "n", "channels": [], "dependencies": ["python=3.6.2", {"pip": ["six"]}]}`.
/// `path` is where it stands in the request, for messages. `null` asks for nothing.
///
/// [`ErrorKind::Invalid`] where it is not a conda specification, [`ErrorKind::Unsupported`] where it asks for something
/// that this server does not act on; the error's target is the place in the document.
pub fn parse_conda(document: &Value, path: &str) -> Result<CondaSpecification> {
    let fields = match document {
        Value::Null => return Ok(CondaSpecification::default()),
        Value::Object(fields) => fields,
        other => return Err(wrong_type(path, other, "an object with `dependencies`")),
    };
    let mut specification = CondaSpecification::default();
    for (key, value) in fields {
        let place = format!("{path}.{key}");
        match key.to_ascii_lowercase().as_str() {
            _ if value.is_null() => {}
            "name" => specification.name = Some(text(value, &place)?.to_owned()),
            "channels" => specification.channels = channels(value, &place)?,
            "dependencies" => specification.environment = dependencies(value, &place)?,
            "prefix" => specification.warnings.push(format!("{place} is not used: this server decides where environments are kept")),
            "variables" if value.as_object().is_some_and(Map::is_empty) => {}
            "variables" => {
                return Err(unsupported(&place, "variables are not set from here; put them into Environment.EnvironmentVariables"));
            }
            _ => return Err(invalid(&place, "not a part of a conda specification: known are name, channels, dependencies and prefix")),
        }
    }
    Ok(specification)
}

fn channels(value: &Value, place: &str) -> Result<Vec<String>> {
    let mut channels = Vec::new();
    for (index, channel) in list(value, place, "a list of channel names")?.iter().enumerate() {
        let place = format!("{place}[{index}]");
        let channel = text(channel, &place)?;
        let has_userinfo = super::requirement::hide_userinfo(channel) != channel;
        if has_userinfo || channel.contains("/t/") {
            return Err(unsupported(&place, "the channel carries credentials, which would be stored with the run; leave them out"));
        }
        channels.push(channel.to_owned());
    }
    Ok(channels)
}

fn dependencies(value: &Value, place: &str) -> Result<PythonEnvironment> {
    let mut environment = PythonEnvironment::default();
    let mut pip_list_at: Option<String> = None;
    let mut seen: Vec<String> = Vec::new();
    for (index, entry) in list(value, place, "a list such as [\"python=3.11\", {\"pip\": [\"numpy\"]}]")?.iter().enumerate() {
        let place = format!("{place}[{index}]");
        match entry {
            Value::String(entry) => {
                let package = conda_package(entry, &place)?;
                if seen.contains(&package.name) {
                    return Err(invalid(&place, &format!("`{}` is named twice; join the constraints with a comma", package.name)));
                }
                package.put_into(&mut environment, &place)?;
                seen.push(package.name);
            }
            Value::Object(part) => {
                let entries = pip_part(part, &place)?;
                if let Some(first) = &pip_list_at {
                    return Err(invalid(&place, &format!("a second pip list (the first is {first}); make them one")));
                }
                environment.pip = pip_entries(entries, &format!("{place}.pip"))?;
                pip_list_at = Some(place);
            }
            other => return Err(wrong_type(&place, other, "a string such as \"python=3.11\"")),
        }
    }
    Ok(environment)
}

/// The list in `{"pip": [...]}`.
fn pip_part<'a>(part: &'a Map<String, Value>, place: &str) -> Result<&'a Value> {
    let mut fields = part.iter();
    match (fields.next(), fields.next()) {
        (Some((key, entries)), None) if key.eq_ignore_ascii_case("pip") => Ok(entries),
        (Some((key, value)), None) if !value.is_array() && !value.is_object() => {
            let value = value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
            Err(invalid(
                place,
                &format!("an object stands where a string is needed: write \"{key}={value}\", with all digits of the version"),
            ))
        }
        _ => Err(invalid(place, "the only object that may stand here is {\"pip\": [...]}")),
    }
}

fn pip_entries(value: &Value, place: &str) -> Result<Vec<String>> {
    if value.is_null() {
        return Ok(Vec::new());
    }
    let mut entries = Vec::new();
    for (index, entry) in list(value, place, "a list of pip requirements")?.iter().enumerate() {
        let place = format!("{place}[{index}]");
        let entry = text(entry, &place)?;
        PipLine::parse(entry).map_err(|error| Error::new(error.kind(), format!("{place}: {}", error.message())).with_target(&place))?;
        entries.push(entry.to_owned());
    }
    Ok(entries)
}

/// One entry of the conda side.
struct CondaPackage {
    /// Lower case.
    name: String,
    /// In the form of [`PythonEnvironment::python`]: `3.9` means 3.9 and what is below it.
    version: Option<String>,
}

impl CondaPackage {
    fn put_into(&self, environment: &mut PythonEnvironment, place: &str) -> Result<()> {
        if self.name == "python" {
            if let Some(version) = &self.version {
                VersionSpec::parse(version).map_err(|error| invalid(place, error.message()))?;
            }
            environment.python = self.version.clone();
            return Ok(());
        }
        let clauses = match &self.version {
            Some(version) => pip_clauses(version).ok_or_else(|| {
                unsupported(place, &format!("the constraint `{version}` can not be handed to pip; give {} in the pip list", self.name))
            })?,
            None => String::new(),
        };
        let requirement = format!("{}{clauses}", self.name);
        PipLine::parse(&requirement).map_err(|error| invalid(place, error.message()))?;
        environment.tools.push(requirement);
        Ok(())
    }
}

/// A conda constraint as pip writes it; `None` for alternatives, which pip does not have.
fn pip_clauses(version: &str) -> Option<String> {
    if version.contains('|') {
        return None;
    }
    let clauses = version.split(',').filter(|clause| !matches!(*clause, "*" | "=*" | "==*")).map(|clause| {
        let at = clause.find(|c: char| !matches!(c, '=' | '<' | '>' | '!' | '~')).unwrap_or(clause.len());
        let (operator, number) = clause.split_at(at);
        let number = number.strip_suffix('*').map_or(number, |rest| rest.strip_suffix('.').unwrap_or(rest));
        let starred = number.len() + at < clause.len();
        match operator {
            "" | "=" => format!("=={number}.*"),
            "==" | "!=" if starred => format!("{operator}{number}.*"),
            _ => format!("{operator}{number}"),
        }
    });
    Some(clauses.collect::<Vec<_>>().join(","))
}

/// Splits `python=3.9`, `python 3.9.*`, `pip >= 20, <21` and the like.
fn conda_package(entry: &str, place: &str) -> Result<CondaPackage> {
    let compact = close_up(entry.trim());
    if compact.contains("::") {
        return Err(unsupported(
            place,
            &format!("`{entry}` names a channel for one package; list it under channels and write the package alone"),
        ));
    }
    if compact.contains('[') {
        return Err(unsupported(place, &format!("the bracket notation of `{entry}` is not read; write name=version")));
    }
    let end = compact.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))).unwrap_or(compact.len());
    let (name, rest) = compact.split_at(end);
    let name = name.to_ascii_lowercase();
    if name.is_empty() {
        return Err(invalid(place, &format!("`{entry}` does not begin with the name of a package")));
    }
    if !matches!(name.as_str(), "python" | "pip" | "setuptools" | "wheel") {
        return Err(unsupported(
            place,
            &format!(
                "conda package `{name}` is not acted on by this server yet: only python, pip, setuptools and wheel may stand outside the `pip` list; move it into `pip`"
            ),
        ));
    }
    let after_space = rest.starts_with(char::is_whitespace);
    let version = rest.trim();
    if version.is_empty() {
        return Ok(CondaPackage { name, version: None });
    }
    let has_build = version.contains(char::is_whitespace)
        || version.split([',', '|']).any(|clause| clause.trim_start_matches(['=', '<', '>', '!', '~']).contains('='));
    if has_build {
        return Err(unsupported(
            place,
            &format!("`{entry}` asks for one conda build, which this server does not act on; leave the build out"),
        ));
    }
    let version = match version.strip_prefix('=') {
        Some(fuzzy) if !fuzzy.starts_with('=') => fuzzy.to_owned(),
        // conda's two-field form: `python 3.9` is exactly that version.
        _ if after_space && version.starts_with(|c: char| c.is_ascii_digit()) && !version.ends_with('*') => format!("=={version}"),
        _ => version.to_owned(),
    };
    if version.is_empty() {
        return Err(invalid(place, &format!("`{entry}` has no version after `=`")));
    }
    Ok(CondaPackage { name, version: Some(version) })
}

/// Takes the spaces around operators and separators away, and keeps one where words meet.
fn close_up(entry: &str) -> String {
    let joins = |c: char| matches!(c, '=' | '<' | '>' | '!' | '~' | ',' | '|');
    let mut result = String::with_capacity(entry.len());
    for word in entry.split_whitespace() {
        if !result.is_empty() && !result.ends_with(joins) && !word.starts_with(joins) {
            result.push(' ');
        }
        result.push_str(word);
    }
    result
}

fn list<'a>(value: &'a Value, place: &str, expected: &str) -> Result<&'a [Value]> {
    value.as_array().map(Vec::as_slice).ok_or_else(|| wrong_type(place, value, expected))
}

fn text<'a>(value: &'a Value, place: &str) -> Result<&'a str> {
    value.as_str().ok_or_else(|| wrong_type(place, value, "a string"))
}

fn wrong_type(place: &str, value: &Value, expected: &str) -> Error {
    let found = match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => format!("the boolean {value}"),
        Value::Number(number) => {
            let note = "an unquoted version such as 3.10 is read as the number 3.1, so quote it";
            return invalid(place, &format!("expected {expected}, found the number {number}; {note}"));
        }
        Value::String(_) => "a string".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    };
    invalid(place, &format!("expected {expected}, found {found}"))
}

fn invalid(place: &str, why: &str) -> Error {
    Error::invalid(format!("{place}: {why}")).with_target(place)
}

fn unsupported(place: &str, why: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("{place}: {why}")).with_target(place)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const PATH: &str = "Environment.Python.CondaDependencies";

    fn read(dependencies: Value) -> Result<PythonEnvironment> {
        parse_conda(&json!({ "name": "n", "dependencies": dependencies }), PATH).map(|specification| specification.environment)
    }

    #[test]
    fn the_founding_document_and_the_sdk_are_read() {
        let seed = json!({ "name": "project_environment", "dependencies": ["python=3.6.2", { "pip": ["azureml-defaults"] }] });
        let seed = parse_conda(&seed, PATH).unwrap();
        assert_eq!(seed.name.as_deref(), Some("project_environment"));
        assert_eq!(seed.environment.python.as_deref(), Some("3.6.2"));
        assert_eq!(seed.environment.pip, ["azureml-defaults"]);
        assert!(seed.channels.is_empty() && seed.warnings.is_empty());

        let sdk = json!({ "channels": ["anaconda", "conda-forge"], "dependencies": ["python=3.8.13", { "pip": ["azureml-defaults"] }], "name": "e", "prefix": "/x" });
        let sdk = parse_conda(&sdk, PATH).unwrap();
        assert_eq!(sdk.channels, ["anaconda", "conda-forge"]);
        assert_eq!(sdk.warnings.len(), 1);
        assert_eq!(parse_conda(&Value::Null, PATH).unwrap(), CondaSpecification::default());
    }

    #[test]
    fn python_versions_are_read_in_every_notation() {
        for (entry, expected) in [
            ("python", None),
            ("Python=3.9", Some("3.9")),
            ("python = 3.9", Some("3.9")),
            ("python==3.9.1", Some("==3.9.1")),
            ("python 3.9", Some("==3.9")),
            ("python 3.9.*", Some("3.9.*")),
            ("python=3.9.*", Some("3.9.*")),
            ("python>=3.8,<3.10", Some(">=3.8,<3.10")),
            ("python >= 3.8 , < 3.10", Some(">=3.8,<3.10")),
            ("python !=3.9.1", Some("!=3.9.1")),
            ("python=3.8|3.9", Some("3.8|3.9")),
        ] {
            assert_eq!(read(json!([entry])).unwrap().python.as_deref(), expected, "{entry}");
        }
    }

    #[test]
    fn tools_become_pip_requirements() {
        let environment = read(json!(["pip=20.2", "setuptools==65", "wheel >=0.3,<1", { "pip": ["six"] }])).unwrap();
        assert_eq!(environment.tools, ["pip==20.2.*", "setuptools==65", "wheel>=0.3,<1"]);
        assert_eq!(read(json!(["pip", "wheel=0.*", "setuptools=*"])).unwrap().tools, ["pip", "wheel==0.*", "setuptools"]);
    }

    #[test]
    fn an_unknown_package_is_refused_with_its_name_and_place() {
        let error = read(json!(["python=3.9", { "pip": [] }, "NumPy=1.2"])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(error.target(), Some("Environment.Python.CondaDependencies.dependencies[2]"));
        assert_eq!(
            error.message(),
            "Environment.Python.CondaDependencies.dependencies[2]: conda package `numpy` is not acted on by this server yet: \
             only python, pip, setuptools and wheel may stand outside the `pip` list; move it into `pip`"
        );
    }

    #[test]
    fn every_mistake_has_its_own_sentence() {
        use ErrorKind::{Invalid, Unsupported};
        for (dependencies, kind, target, part) in [
            (json!("python"), Invalid, "dependencies", "expected a list"),
            (json!([3.10]), Invalid, "dependencies[0]", "number 3.1"),
            (json!([{ "python": 3.10 }]), Invalid, "dependencies[0]", "write \"python=3.1\""),
            (json!([null]), Invalid, "dependencies[0]", "found null"),
            (json!([["python"]]), Invalid, "dependencies[0]", "found a list"),
            (json!([{}]), Invalid, "dependencies[0]", "only object"),
            (json!([{ "pip": [], "conda": [] }]), Invalid, "dependencies[0]", "only object"),
            (json!([{ "pip": ["a"] }, { "pip": ["b"] }]), Invalid, "dependencies[1]", "second pip list"),
            (json!([{ "pip": "six" }]), Invalid, "dependencies[0].pip", "found a string"),
            (json!([{ "pip": ["six", 1.2] }]), Invalid, "dependencies[0].pip[1]", "quote it"),
            (json!([{ "pip": ["-r x.txt"] }]), Unsupported, "dependencies[0].pip[0]", "apart from the snapshot"),
            (json!([{ "pip": ["--index-url https://u:p@example.org"] }]), Unsupported, "dependencies[0].pip[0]", "credentials"),
            (json!(["python=3.9=h123_0"]), Unsupported, "dependencies[0]", "one conda build"),
            (json!(["python 3.9 h123_0"]), Unsupported, "dependencies[0]", "one conda build"),
            (json!(["python==3.9==h123_0"]), Unsupported, "dependencies[0]", "one conda build"),
            (json!(["conda-forge::python=3.9"]), Unsupported, "dependencies[0]", "names a channel"),
            (json!(["python[version='3.9']"]), Unsupported, "dependencies[0]", "bracket"),
            (json!(["python=3.9", "python<4"]), Invalid, "dependencies[1]", "named twice"),
            (json!(["python=abc"]), Invalid, "dependencies[0]", "not a final release"),
            (json!(["python="]), Invalid, "dependencies[0]", "no version"),
            (json!(["python>=3.9,<3.8"]), Invalid, "dependencies[0]", "no version of Python"),
            (json!(["=3.9"]), Invalid, "dependencies[0]", "name of a package"),
            (json!(["pip=20|21"]), Unsupported, "dependencies[0]", "in the pip list"),
        ] {
            let error = read(dependencies.clone()).unwrap_err();
            assert_eq!(error.kind(), kind, "{dependencies}: {error}");
            assert_eq!(error.target(), Some(format!("{PATH}.{target}").as_str()), "{dependencies}");
            assert!(error.message().contains(part), "{dependencies}: {error}");
        }
    }

    #[test]
    fn the_frame_is_checked_too() {
        for (document, part) in [
            (json!([]), "found a list"),
            (json!({ "dependencis": [] }), "not a part of a conda specification"),
            (json!({ "name": 3 }), "found the number 3"),
            (json!({ "channels": "defaults" }), "expected a list"),
            (json!({ "channels": ["https://u:s3cret@example.org/c"] }), "credentials"),
            (json!({ "channels": ["https://example.org/t/s3cret/c"] }), "credentials"),
            (json!({ "variables": { "A": "1" } }), "EnvironmentVariables"),
        ] {
            let error = parse_conda(&document, PATH).unwrap_err();
            assert!(error.message().contains(part), "{document}: {error}");
            assert!(!error.message().contains("s3cret"), "{error}");
        }
        assert!(parse_conda(&json!({ "Name": "n", "Dependencies": null, "variables": {} }), PATH).is_ok());
    }
}
