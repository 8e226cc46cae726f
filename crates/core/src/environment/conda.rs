//! Reading `CondaDependencies` (azureml-wire D.4): a conda environment file as JSON.
//!
//! A specification that asks for nothing but Python, pip, setuptools and wheel on the conda side is a Python version with a pip
//! list, for which no channel is needed; anything else is a list of conda packages. What is not acted on is refused with
//! the place in the document and what to do about it.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{
    CondaEnvironment, EnvironmentSpec, MatchSpec, PythonEnvironment, VersionSpec,
    matchspec::close_up,
    requirement::{PipLine, hide_userinfo},
};
use crate::{Error, ErrorKind, Result};

/// The packages that are installed without conda.
const TOOLS: [&str; 4] = ["python", "pip", "setuptools", "wheel"];

/// A conda specification, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CondaSpecification {
    /// The name it gives itself; it identifies nothing.
    pub name: Option<String>,
    /// What is to be built, with the channels that are named.
    pub environment: EnvironmentSpec,
    /// Variables that it sets for whatever runs in it.
    pub variables: BTreeMap<String, String>,
    /// Sentences for the run's warnings: what was read and is not used.
    pub warnings: Vec<String>,
}

impl Default for CondaSpecification {
    fn default() -> Self {
        let environment = EnvironmentSpec::Python(PythonEnvironment::default());
        Self { name: None, environment, variables: BTreeMap::new(), warnings: Vec::new() }
    }
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
    let mut channels = Vec::new();
    let mut dependencies = Dependencies::default();
    for (key, value) in fields {
        let place = format!("{path}.{key}");
        match key.to_ascii_lowercase().as_str() {
            _ if value.is_null() => {}
            "name" => specification.name = Some(text(value, &place)?.to_owned()),
            "channels" => channels = read_channels(value, &place)?,
            "dependencies" => dependencies = read_dependencies(value, &place)?,
            "prefix" => specification.warnings.push(format!("{place} is not used: this server decides where environments are kept")),
            "variables" => specification.variables = read_variables(value, &place)?,
            _ => {
                let known = "known are name, channels, dependencies, variables and prefix";
                return Err(invalid(&place, &format!("not a part of a conda specification: {known}")));
            }
        }
    }
    specification.environment = dependencies.into_spec(channels)?;
    Ok(specification)
}

fn read_channels(value: &Value, place: &str) -> Result<Vec<String>> {
    let mut channels = Vec::new();
    for (index, channel) in list(value, place, "a list of channel names")?.iter().enumerate() {
        let place = format!("{place}[{index}]");
        let channel = text(channel, &place)?.trim();
        refuse_credentials(channel, &place)?;
        if channel.is_empty() {
            return Err(invalid(&place, "the name of a channel is empty"));
        }
        channels.push(channel.to_owned());
    }
    Ok(channels)
}

fn refuse_credentials(text: &str, place: &str) -> Result<()> {
    if hide_userinfo(text) != text || text.contains("/t/") {
        let why = "the channel carries credentials, which would be stored with the run; leave them out, and set conda_credentials under [environments]";
        return Err(unsupported(place, why));
    }
    Ok(())
}

fn read_variables(value: &Value, place: &str) -> Result<BTreeMap<String, String>> {
    let Value::Object(fields) = value else { return Err(wrong_type(place, value, "an object such as {\"NAME\": \"value\"}")) };
    let mut variables = BTreeMap::new();
    for (name, value) in fields {
        let place = format!("{place}.{}", name.escape_debug());
        let value = text(value, &place)?;
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(invalid(&place, "not a variable: a name is not empty and holds neither `=` nor NUL, and a value holds no NUL"));
        }
        variables.insert(name.clone(), value.to_owned());
    }
    Ok(variables)
}

/// `dependencies`, read but not yet judged.
#[derive(Default)]
struct Dependencies {
    /// Entries of the conda side with their places.
    packages: Vec<(String, String, MatchSpec)>,
    pip: Vec<String>,
}

fn read_dependencies(value: &Value, place: &str) -> Result<Dependencies> {
    let mut dependencies = Dependencies::default();
    let mut pip_list_at: Option<String> = None;
    for (index, entry) in list(value, place, "a list such as [\"python=3.11\", {\"pip\": [\"numpy\"]}]")?.iter().enumerate() {
        let place = format!("{place}[{index}]");
        match entry {
            Value::String(entry) => {
                refuse_credentials(entry, &place)?;
                let spec = MatchSpec::parse(entry)
                    .map_err(|error| Error::new(error.kind(), format!("{place}: {}", error.message())).with_target(&place))?;
                dependencies.packages.push((place, entry.clone(), spec));
            }
            Value::Object(part) => {
                let entries = pip_part(part, &place)?;
                if let Some(first) = &pip_list_at {
                    return Err(invalid(&place, &format!("a second pip list (the first is {first}); make them one")));
                }
                dependencies.pip = pip_entries(entries, &format!("{place}.pip"))?;
                pip_list_at = Some(place);
            }
            other => return Err(wrong_type(&place, other, "a string such as \"python=3.11\"")),
        }
    }
    Ok(dependencies)
}

impl Dependencies {
    fn into_spec(self, channels: Vec<String>) -> Result<EnvironmentSpec> {
        let by_pip = self.packages.iter().all(|(_, _, spec)| spec.is_plain() && TOOLS.contains(&spec.name.as_str()));
        if !by_pip {
            let packages = self.packages.into_iter().map(|(_, entry, _)| entry).collect();
            return Ok(EnvironmentSpec::Conda(CondaEnvironment { packages, channels, pip: self.pip }));
        }
        let mut environment = PythonEnvironment { pip: self.pip, channels, ..PythonEnvironment::default() };
        let mut seen: Vec<String> = Vec::new();
        for (place, entry, _) in &self.packages {
            let package = conda_package(entry, place)?;
            if seen.contains(&package.name) {
                return Err(invalid(place, &format!("`{}` is named twice; join the constraints with a comma", package.name)));
            }
            package.put_into(&mut environment, place)?;
            seen.push(package.name);
        }
        Ok(EnvironmentSpec::Python(environment))
    }
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

/// Splits `python=3.9`, `python 3.9.*`, `pip >= 20, <21` and the like, which were found to be plain before.
fn conda_package(entry: &str, place: &str) -> Result<CondaPackage> {
    let compact = close_up(entry.split(" #").next().unwrap_or_default().trim());
    let compact = compact.strip_suffix(']').map_or(compact.as_str(), |text| text);
    let (compact, bracket) = compact.split_once('[').map_or((compact, None), |(name, condition)| (name.trim_end(), Some(condition)));
    let end = compact.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))).unwrap_or(compact.len());
    let (name, rest) = compact.split_at(end);
    let name = name.to_ascii_lowercase();
    let quoted = bracket.and_then(|condition| condition.split_once('=')).map(|(_, value)| value.trim_matches(['"', '\'']));
    let after_space = rest.starts_with(char::is_whitespace) || quoted.is_some();
    let version = quoted.unwrap_or(rest).trim();
    if version.is_empty() {
        return Ok(CondaPackage { name, version: None });
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
        match parse_conda(&json!({ "name": "n", "dependencies": dependencies }), PATH)?.environment {
            EnvironmentSpec::Python(environment) => Ok(environment),
            other => panic!("{other:?}"),
        }
    }

    fn python(specification: &CondaSpecification) -> &PythonEnvironment {
        match &specification.environment {
            EnvironmentSpec::Python(environment) => environment,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_founding_document_and_the_sdk_are_read() {
        let seed = json!({ "name": "project_environment", "dependencies": ["python=3.6.2", { "pip": ["azureml-defaults"] }] });
        let seed = parse_conda(&seed, PATH).unwrap();
        assert_eq!(seed.name.as_deref(), Some("project_environment"));
        assert_eq!(python(&seed).python.as_deref(), Some("3.6.2"));
        assert_eq!(python(&seed).pip, ["azureml-defaults"]);
        assert!(python(&seed).channels.is_empty() && seed.warnings.is_empty());

        let sdk = json!({ "channels": ["anaconda", "conda-forge"], "dependencies": ["python=3.8.13", { "pip": ["azureml-defaults"] }], "name": "e", "prefix": "/x" });
        let sdk = parse_conda(&sdk, PATH).unwrap();
        assert_eq!(python(&sdk).channels, ["anaconda", "conda-forge"]);
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
            ("python[version='3.9']", Some("==3.9")),
            ("python [version=\">=3.8,<3.10\"]", Some(">=3.8,<3.10")),
            ("python=3.9 # ours", Some("3.9")),
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
    fn anything_beyond_python_and_its_tools_is_a_conda_environment() {
        for entry in
            ["NumPy=1.2", "python=3.9=h123_0", "python 3.9 h123_0", "conda-forge::python=3.9", "python[build='h1*']", "pip[subdir=noarch]"]
        {
            let document = json!({ "channels": ["conda-forge"], "dependencies": ["python=3.9", { "pip": ["six"] }, entry] });
            let expected = CondaEnvironment {
                packages: vec!["python=3.9".into(), entry.into()],
                channels: vec!["conda-forge".into()],
                pip: vec!["six".into()],
            };
            assert_eq!(parse_conda(&document, PATH).unwrap().environment, EnvironmentSpec::Conda(expected), "{entry}");
        }
    }

    #[test]
    fn variables_are_taken_over_as_text() {
        let found = parse_conda(&json!({ "variables": { "A": "1", "B": "" } }), PATH).unwrap();
        assert_eq!(found.variables, BTreeMap::from([("A".into(), "1".into()), ("B".into(), String::new())]));
        for (variables, part) in
            [(json!({ "A": 1 }), "quote it"), (json!({ "A=B": "1" }), "not a variable"), (json!(["A"]), "found a list")]
        {
            let error = parse_conda(&json!({ "variables": variables }), PATH).unwrap_err();
            assert!(error.message().contains(part), "{error}");
        }
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
            (json!(["https://u:p@c.example/x::six"]), Unsupported, "dependencies[0]", "credentials"),
            (json!(["numpy=1.2", "six[when='x']"]), Unsupported, "dependencies[1]", "`when` is not acted on"),
            (json!(["numpy 1 2 3"]), Invalid, "dependencies[0]", "too many words"),
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
        ] {
            let error = parse_conda(&document, PATH).unwrap_err();
            assert!(error.message().contains(part), "{document}: {error}");
            assert!(!error.message().contains("s3cret"), "{error}");
        }
        assert!(parse_conda(&json!({ "Name": "n", "Dependencies": null, "variables": {} }), PATH).is_ok());
    }
}
