//! conda files (`environment.yml`) as definitions hold them: JSON. What is wrong is said with its line, before anything is sent.

use anyhow::{Result, bail};
use serde_json::Value;
use trainyard_core::environment::parse_conda;
use trainyard_wire::yaml::Yaml;

/// Reads a conda file and finds it good; what it asks for may still not exist.
pub fn read(text: &str) -> Result<Value> {
    let yaml = Yaml::read(text)?;
    if !yaml.value.is_object() {
        bail!("expected a mapping with `dependencies`");
    }
    if let Err(error) = parse_conda(&yaml.value, "") {
        let place = error.target().unwrap_or_default().trim_start_matches('.').to_owned();
        let message = error.message().trim_start_matches('.').to_owned();
        match yaml.line_of(&place) {
            Some(line) => bail!("line {line}: {message}"),
            None => bail!("{message}"),
        }
    }
    Ok(yaml.value)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_conda_file_becomes_the_json_of_a_definition() {
        let read = read("name: train\nchannels: [conda-forge]\ndependencies:\n  - python=3.11\n  - pip:\n    - six==1.16.0\n").unwrap();
        assert_eq!(read["dependencies"], json!(["python=3.11", { "pip": ["six==1.16.0"] }]));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        let table = [
            ("dependencies:\n  - python=3.11\n  - 3.10\n", "line 3"),
            ("dependencies:\n  - pip:\n    - six\n    - -e .\n", "line 4"),
            ("dependencies:\n  - [\n", "line "),
            ("- a\n", "expected a mapping"),
        ];
        for (text, words) in table {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn credentials_are_not_repeated() {
        let error = read("channels:\n  - https://u:hunter2@c.example/x\ndependencies: []\n").unwrap_err().to_string();
        assert!(error.contains("line 2") && !error.contains("hunter2"), "{error}");
    }
}
