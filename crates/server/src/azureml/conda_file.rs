//! Reads the conda file that a definition names in its snapshot (`CondaDependenciesFile`), so that everything behind sees its content in
//! the place of its name.

use trainyard_core::{Error, Result, archive::ArchiveLimits, environment::parse_conda};
use trainyard_store::archive::{Wanted, read_staged};
use trainyard_wire::{
    azureml::execution::SubmittedConfiguration,
    yaml::{MAX_BYTES, Yaml},
};

use super::convert::definition::Places;
use crate::upload::Submission;

/// Puts the content of the file into `CondaDependencies`. The name stays where it is, for the echo.
///
/// # Errors
/// [`trainyard_core::ErrorKind::Invalid`] and [`trainyard_core::ErrorKind::Unsupported`] with the file, the line, and what is wrong there; the target is the property.
pub(crate) async fn inline(submitted: &mut SubmittedConfiguration, submission: &Submission, limits: ArchiveLimits) -> Result<()> {
    let places = Places(&submitted.spelling);
    let property = "Environment.Python.CondaDependenciesFile";
    let Some(python) = submitted.asked.environment.as_mut().and_then(|environment| environment.python.as_mut()) else { return Ok(()) };
    let named = python.conda_dependencies_file.as_deref().map(str::trim).filter(|name| !name.is_empty());
    let Some(path) = named.map(str::to_owned).filter(|_| !python.user_managed_dependencies) else { return Ok(()) };
    if python.conda_dependencies.is_some() {
        let other = places.path("Environment.Python.CondaDependencies");
        return Err(places.invalid(property, format!(" is given and so is {other}: give one of them")));
    }
    let about = |error: Error| {
        let place = places.path(property);
        Error::new(error.kind(), format!("{place}: {}", error.message())).with_target(place)
    };
    let wanted = Wanted { path: path.clone(), max_bytes: MAX_BYTES as u64 };
    let content = read_staged(&submission.archive, limits, wanted).await.map_err(about)?;
    python.conda_dependencies = Some(read(&path, &content).map_err(about)?);
    Ok(())
}

/// The content of a conda file as JSON, found to be a specification.
fn read(path: &str, content: &[u8]) -> Result<serde_json::Value> {
    let text = std::str::from_utf8(content).map_err(|_| Error::invalid(format!("`{path}` is not UTF-8")))?;
    let yaml = Yaml::read(text.trim_start_matches('\u{feff}')).map_err(|error| Error::invalid(format!("`{path}` is not YAML: {error}")))?;
    parse_conda(&yaml.value, path).map_err(|error| {
        let place = error.target().and_then(|target| target.strip_prefix(path)).unwrap_or_default().trim_start_matches('.');
        let line = yaml.line_of(place).map(|line| format!("line {line} of ")).unwrap_or_default();
        Error::new(error.kind(), format!("{line}{}", error.message()))
    })?;
    Ok(yaml.value)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use trainyard_core::ErrorKind;

    use super::*;

    #[test]
    fn a_conda_file_is_read_as_the_json_form_is() {
        let found = read("environment.yml", b"\xef\xbb\xbfname: x\ndependencies:\n- python=3.10\n- pip:\n  - six\n").unwrap();
        assert_eq!(found, json!({ "name": "x", "dependencies": ["python=3.10", { "pip": ["six"] }] }));
    }

    #[test]
    fn a_mistake_is_told_with_its_line_and_a_number_with_what_to_do() {
        for (text, kind, parts) in [
            ("dependencies:\n- python=3.9\n- 3.10\n", ErrorKind::Invalid, ["line 3 of env.yml.dependencies[1]", "3.10", "quote it"]),
            (
                "name: x\ndependencies:\n- python: 3.10\n",
                ErrorKind::Invalid,
                ["line 3 of env.yml.dependencies[0]", "write \"python=", "all digits"],
            ),
            ("dependencies: [\n", ErrorKind::Invalid, ["`env.yml` is not YAML", "line 1", "column"]),
            (
                "channels:\n- https://u:s3cret@c.example\n",
                ErrorKind::Unsupported,
                ["line 2 of env.yml.channels[0]", "credentials", "conda_credentials"],
            ),
            ("variables:\n  A: 1.10\n", ErrorKind::Invalid, ["line 2 of env.yml.variables.A", "number 1.1", "quote it"]),
            ("- python\n", ErrorKind::Invalid, ["env.yml", "expected an object", "a list"]),
        ] {
            let error = read("env.yml", text.as_bytes()).unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            for part in parts {
                assert!(error.message().contains(part), "{part}: {error}");
            }
            assert!(!error.message().contains("s3cret"), "{error}");
        }
        assert!(read("env.yml", b"\xff").unwrap_err().message().contains("not UTF-8"));
    }
}
