//! What activating a conda environment does to the variables of a process.
//!
//! Packages bring scripts (`etc/conda/activate.d/*.sh`) and variables (`etc/conda/env_vars.d/*.json`). They are evaluated once, when the
//! environment is built, and what they changed is kept beside the lock, so that a run starts without a shell and always the
//! same way. What a script would make of variables of one particular run is so not seen; `PATH` is the exception: folders
//! that it puts in front are put in front of the run's own.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{
    command::{Console, ask, command},
    host::Host,
    prepare::PrepareError,
};

/// Where it is kept in an environment.
const FILE: &str = "activation.json";

/// Of the shell, or already said by whoever starts a run.
const LEFT_OUT: [&str; 8] = ["_", "PWD", "OLDPWD", "SHLVL", "CONDA_SHLVL", "CONDA_PREFIX", "CONDA_DEFAULT_ENV", "HOME"];

/// Sources every script with its words thrown away, then prints all variables.
const EVALUATE: &str = r#"for script in "$@"; do . "$script" >/dev/null 2>&1; done; exec env -0"#;

/// What every process in the environment sees, scripts or not.
pub(super) fn fixed(prefix: &Path) -> BTreeMap<String, String> {
    let prefix = prefix.to_string_lossy();
    BTreeMap::from([("CONDA_PREFIX".into(), prefix.clone().into_owned()), ("CONDA_DEFAULT_ENV".into(), prefix.into_owned())])
}

/// What was kept. Under `PATH` stand folders that belong in front of that of the environment.
pub(super) fn recall(prefix: &Path) -> BTreeMap<String, String> {
    let kept = std::fs::read(prefix.join(FILE)).ok().and_then(|text| serde_json::from_slice(&text).ok());
    let mut variables: BTreeMap<String, String> = kept.unwrap_or_default();
    variables.extend(fixed(prefix));
    variables
}

/// Evaluates the scripts of the environment and keeps what they did.
pub(super) async fn evaluate(prefix: &Path, host: &Host, console: &mut Console<'_>) -> Result<(), PrepareError> {
    let failed = |error| PrepareError::disk("failed to evaluate the activation of the environment", error);
    let mut variables = of_files(&prefix.join("etc/conda/env_vars.d"), console).map_err(failed)?;
    let scripts = listed(&prefix.join("etc/conda/activate.d"), "sh").map_err(failed)?;
    if !scripts.is_empty() {
        variables = of_scripts(prefix, &scripts, &variables, (host, console)).await?;
    }
    if variables.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = variables.keys().map(String::as_str).collect();
    console.line(&format!("activation sets {}", names.join(", ")));
    let text = serde_json::to_vec_pretty(&variables).map_err(|error| failed(error.into()))?;
    std::fs::write(prefix.join(FILE), text).map_err(failed)
}

/// The files with this extension, in the order in which conda takes them.
fn listed(folder: &Path, extension: &str) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut found = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    found.retain(|path| path.extension().is_some_and(|found| found == extension));
    found.sort();
    Ok(found)
}

fn of_files(folder: &Path, console: &mut Console<'_>) -> io::Result<BTreeMap<String, String>> {
    let mut variables = BTreeMap::new();
    for file in listed(folder, "json")? {
        match serde_json::from_slice::<BTreeMap<String, Value>>(&std::fs::read(&file)?) {
            Ok(found) => {
                let texts = found.into_iter().filter_map(|(name, value)| Some((name, value.as_str()?.to_owned())));
                variables.extend(texts.filter(|(name, _)| is_variable(name)));
            }
            Err(error) => console.line(&format!("warning: {} is not used: {error}", file.display())),
        }
    }
    Ok(variables)
}

fn is_variable(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0'])
}

async fn of_scripts(
    prefix: &Path,
    scripts: &[PathBuf],
    variables: &BTreeMap<String, String>,
    (host, console): (&Host, &mut Console<'_>),
) -> Result<BTreeMap<String, String>, PrepareError> {
    let Some(shell) =
        [prefix.join("bin/bash")].into_iter().chain(host.on_path("bash")).chain(host.on_path("sh")).find(|path| path.exists())
    else {
        console.line("warning: there is no bash on this node, so the activation scripts of the packages have no effect");
        return Ok(variables.clone());
    };
    let mut shell = command(host, &shell);
    let path = format!("{}:/usr/local/bin:/usr/bin:/bin", prefix.join("bin").display());
    shell.env_clear().env("PATH", &path).env("CONDA_SHLVL", "1").envs(fixed(prefix)).envs(variables);
    shell.env("HOME", host.home().unwrap_or_else(|| "/".into()));
    shell.arg("-c").arg(EVALUATE).arg("activate").args(scripts);
    let (status, answer) = ask(shell, console.cancel).await?;
    if !status.success() {
        console.line(&format!("warning: the activation scripts of the packages ended with {status} and have no effect"));
        return Ok(variables.clone());
    }
    Ok(changed(&answer, &path))
}

/// What `answer`, variables ended by NUL, adds to those that the shell was started with.
fn changed(answer: &str, path: &str) -> BTreeMap<String, String> {
    let all = answer.split('\0').filter_map(|pair| pair.split_once('='));
    let mut variables: BTreeMap<String, String> = all
        .filter(|(name, _)| is_variable(name) && !LEFT_OUT.contains(name))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let known: Vec<&str> = path.split(':').collect();
    if let Some(path) = variables.remove("PATH") {
        let added: Vec<&str> = path.split(':').filter(|folder| !folder.is_empty() && !known.contains(folder)).collect();
        if !added.is_empty() {
            variables.insert("PATH".into(), added.join(":"));
        }
    }
    variables
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;

    #[tokio::test]
    async fn scripts_and_files_of_variables_take_effect_in_order_and_nothing_of_the_node_does() {
        let prefix = tempfile::tempdir().unwrap();
        let conda = prefix.path().join("etc/conda");
        for (file, text) in [
            ("env_vars.d/a.json", r#"{"FROM_FILE": "1", "NUMBER": 2}"#),
            ("env_vars.d/b.json", "not json"),
            ("activate.d/10.sh", "export ONE=\"$FROM_FILE one\"\necho noise\nlocal_one=1\nexport PATH=\"$CONDA_PREFIX/more:$PATH\""),
            ("activate.d/20.sh", "export TWO=\"$ONE two\nlines\"; false"),
            ("activate.d/30.fish", "export THREE=3"),
        ] {
            let file = conda.join(file);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        }
        let (mut log, cancel) = (Vec::new(), CancellationToken::new());
        evaluate(prefix.path(), &Host::current(), &mut Console::new(&mut log, &cancel)).await.unwrap();
        let mut found = recall(prefix.path());
        let shown = prefix.path().to_str().unwrap();
        assert_eq!(found.remove("CONDA_PREFIX").as_deref(), Some(shown));
        assert_eq!(found.remove("CONDA_DEFAULT_ENV").as_deref(), Some(shown));
        let more = format!("{shown}/more");
        let expected = [("FROM_FILE", "1"), ("ONE", "1 one"), ("PATH", more.as_str()), ("TWO", "1 one two\nlines")];
        assert_eq!(found, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
        assert!(log[0].contains("b.json is not used") && log[1] == "activation sets FROM_FILE, ONE, PATH, TWO", "{log:?}");
    }

    #[tokio::test]
    async fn an_environment_without_scripts_needs_no_shell() {
        let prefix = tempfile::tempdir().unwrap();
        let (mut log, cancel) = (Vec::new(), CancellationToken::new());
        let nothing = Host::with([]);
        evaluate(prefix.path(), &nothing, &mut Console::new(&mut log, &cancel)).await.unwrap();
        assert!(log.is_empty() && !prefix.path().join(FILE).exists());
        std::fs::create_dir_all(prefix.path().join("etc/conda/activate.d")).unwrap();
        std::fs::write(prefix.path().join("etc/conda/activate.d/a.sh"), "").unwrap();
        evaluate(prefix.path(), &nothing, &mut Console::new(&mut log, &cancel)).await.unwrap();
        assert!(log[0].contains("no bash"), "{log:?}");
    }
}
