//! From the run configuration that a client sent (azureml-wire D.3) to what this server executes.
//!
//! Types were checked when the document was read. Here is decided what this server acts on: whatever asks for more than its
//! default and is not acted on is refused with a sentence that names the property ([`super::refusals`]), and what is
//! merely not used is told in a warning. Nothing is dropped in silence.
//!
//! Invariant: the document that is kept holds no secret.

use std::collections::BTreeMap;

use serde_json::Value;
use trainyard_core::{
    Error, Result,
    definition::{self, Definition, Entry, History},
    kubernetes::KubernetesWish,
    run::RetryWish,
    slurm::SlurmWish,
};
use trainyard_wire::{
    azureml::{
        definition::RunConfiguration,
        environments::EnvironmentDefinition,
        execution::SubmittedConfiguration,
        runs::TextMap,
        sections::{Command, Framework},
    },
    json::Spelling,
};

use super::{
    container::{Rules, TargetRule, to_container},
    data::{hide_secrets, to_data},
    distribution::to_distribution,
    environment::{self, ConvertedEnvironment},
    refusals,
};

/// The most retries that a definition may ask for.
const MAX_RETRIES: i64 = 100;
/// The longest first wait that it may ask for: a day.
const MAX_BACKOFF_SECONDS: i64 = 86_400;

/// A configuration that can be executed.
#[derive(Clone, Debug)]
pub(crate) struct Converted {
    /// What is executed.
    pub(crate) definition: Definition,
    /// Sentences for the run's warnings.
    pub(crate) warnings: Vec<String>,
    /// The normalised, fully expanded configuration, for `runDefinition` of run details.
    pub(crate) document: Value,
}

/// Names places in the configuration as the client spelt them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Places<'a>(pub(crate) &'a Spelling);

impl Places<'_> {
    /// The whole path of a property given in PascalCase, e.g. `Environment.Docker.Enabled`.
    pub(crate) fn path(self, property: &str) -> String {
        self.0.path(&format!("Configuration.{property}"))
    }

    /// [`trainyard_core::ErrorKind::Invalid`]: `{path}{rest}`, about that path.
    pub(crate) fn invalid(self, property: &str, rest: impl AsRef<str>) -> Error {
        let path = self.path(property);
        Error::invalid(format!("{path}{}", rest.as_ref())).with_target(path)
    }
}

/// Validates `submitted` and converts it for execution on one of the targets of `rules`.
///
/// # Errors
/// [`trainyard_core::ErrorKind::Invalid`] for what cannot be meant, [`trainyard_core::ErrorKind::Unsupported`] for what this server
/// does not act on; the target of the error is the path of the property, as the client spelt it.
pub(crate) fn to_definition(submitted: &SubmittedConfiguration, rules: Rules<'_>) -> Result<Converted> {
    let SubmittedConfiguration { asked, spelling } = submitted;
    let places = Places(spelling);
    if let Some(refusal) = refusals::first(asked) {
        return Err(refusal.into_error(places));
    }
    let ConvertedEnvironment { spec, variables, mut warnings } = environment::to_spec(asked.environment.as_ref(), places)?;
    let target = target(asked, rules.targets, places)?;
    let container = to_container(asked, (&spec, target), rules.sealer, places, &mut warnings)?;
    let definition = Definition {
        entry: entry(asked, places)?,
        arguments: arguments(asked, places)?,
        target: target.name.clone(),
        framework: framework(asked.framework),
        environment: spec,
        container,
        environment_variables: environment_variables(asked, variables, places)?,
        max_run_duration_seconds: max_run_duration(asked, places)?,
        priority: asked.priority.unwrap_or(0),
        history: history(asked, places)?,
        retries: retries(asked, places)?,
        slurm: slurm(asked, places)?,
        kubernetes: kubernetes(asked, places)?,
        distribution: to_distribution(asked, places)?,
        data: to_data(asked, (rules, target), places, &mut warnings)?,
    };
    Ok(Converted { document: document(asked, &definition)?, definition, warnings })
}

fn entry(asked: &RunConfiguration, places: Places<'_>) -> Result<Entry> {
    let script = asked.script.as_deref().filter(|script| !script.trim().is_empty());
    match (script, &asked.command) {
        (Some(_), command) if !command.is_empty() => {
            Err(places.invalid("Command", format!(" is given and so is {}: give one of them", places.path("Script"))))
        }
        (Some(script), _) => {
            Ok(Entry::Script { path: relative_path(script).map_err(|why| places.invalid("Script", format!(" = `{script}` {why}")))? })
        }
        (None, command) if command.is_empty() => {
            Err(places.invalid("Script", format!(" is empty and so is {}: one of them says what to run", places.path("Command"))))
        }
        (None, Command::Line(line)) => words(vec![line.clone()], places),
        (None, Command::Words(list)) => words(list.clone(), places),
    }
}

fn words(words: Vec<String>, places: Places<'_>) -> Result<Entry> {
    if words.first().is_none_or(|word| word.trim().is_empty()) {
        return Err(places.invalid("Command", " starts with an empty word: the first word is the program"));
    }
    if words.iter().any(|word| word.contains('\0')) {
        return Err(places.invalid("Command", " holds a NUL character, which no command can"));
    }
    Ok(Entry::Command { words })
}

/// A path inside the snapshot with `/` between its parts; `Err` says what is wrong with it. Windows clients write `\`.
fn relative_path(path: &str) -> Result<String, &'static str> {
    let path = path.trim().replace('\\', "/");
    let has_drive = path.as_bytes().get(1) == Some(&b':') && path.as_bytes()[0].is_ascii_alphabetic();
    if path.starts_with('/') || has_drive {
        return Err("is an absolute path: it must be relative to the root of the snapshot");
    }
    if path.contains('\0') {
        return Err("holds a NUL character, which no path can");
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") {
        return Err("leads out of the snapshot: `..` is not allowed");
    }
    if parts.is_empty() {
        return Err("is the root of the snapshot itself: name something in it");
    }
    Ok(parts.join("/"))
}

fn arguments(asked: &RunConfiguration, places: Places<'_>) -> Result<Vec<String>> {
    match asked.arguments.iter().position(|argument| argument.contains('\0')) {
        None => Ok(asked.arguments.clone()),
        Some(index) => Err(places.invalid(&format!("Arguments[{index}]"), " holds a NUL character, which no argument can")),
    }
}

fn target<'a>(asked: &RunConfiguration, known: &'a [TargetRule], places: Places<'_>) -> Result<&'a TargetRule> {
    let name = asked.target.as_deref().map(str::trim).filter(|name| !name.is_empty()).unwrap_or("local");
    let exact = known.iter().find(|target| target.name.as_str() == name);
    if let Some(found) = exact.or_else(|| known.iter().find(|target| target.name.as_str().eq_ignore_ascii_case(name))) {
        return Ok(found);
    }
    let mut names: Vec<&str> = known.iter().map(|target| target.name.as_str()).collect();
    names.sort_unstable();
    let shown: String = name.chars().take(80).collect();
    Err(Error::invalid(format!("target `{shown}` is not configured; known targets: {}", names.join(", ")))
        .with_target(places.path("Target")))
}

fn framework(framework: Framework) -> definition::Framework {
    match framework {
        Framework::Python => definition::Framework::Python,
        Framework::PySpark => definition::Framework::PySpark,
        Framework::Cntk => definition::Framework::Cntk,
        Framework::TensorFlow => definition::Framework::TensorFlow,
        Framework::PyTorch => definition::Framework::PyTorch,
    }
}

/// `variables` of the conda specification, overridden by the environment's, overridden by the run's; a null takes a variable away.
fn environment_variables(
    asked: &RunConfiguration,
    mut variables: BTreeMap<String, String>,
    places: Places<'_>,
) -> Result<BTreeMap<String, String>> {
    let none = TextMap::new();
    let own = asked.environment.as_ref().map_or(&none, |environment| &environment.environment_variables);
    for (property, map) in [("Environment.EnvironmentVariables", own), ("EnvironmentVariables", &asked.environment_variables)] {
        for (name, value) in map {
            let place = || format!("{property}.{}", name.escape_debug());
            if name.is_empty() || name.contains(['=', '\0']) {
                return Err(places.invalid(&place(), " is not a variable: a name is not empty and holds neither `=` nor NUL"));
            }
            match value {
                Some(value) if value.contains('\0') => {
                    return Err(places.invalid(&place(), " has a value with a NUL character, which no variable can hold"));
                }
                Some(value) => drop(variables.insert(name.clone(), value.clone())),
                None => drop(variables.remove(name)),
            }
        }
    }
    Ok(variables)
}

fn max_run_duration(asked: &RunConfiguration, places: Places<'_>) -> Result<Option<u64>> {
    let Some(seconds) = asked.max_run_duration_seconds else {
        return Ok(None);
    };
    match u64::try_from(seconds) {
        Ok(seconds) if seconds > 0 => Ok(Some(seconds)),
        _ => Err(places.invalid("MaxRunDurationSeconds", format!(" = {seconds} is not a limit: it must be at least 1, or null for none"))),
    }
}

fn retries(asked: &RunConfiguration, places: Places<'_>) -> Result<RetryWish> {
    let Some(section) = &asked.retries else { return Ok(RetryWish::default()) };
    if let Some(name) = section.rest.keys().next() {
        let known = "expected Infrastructure, UserCode or BackoffSeconds";
        return Err(places.invalid("Retries", format!(" has the property `{}`: {known}", name.escape_debug())));
    }
    let number = |property: &str, number: Option<i64>, most: i64| match number {
        Some(number) if !(0..=most).contains(&number) => {
            Err(places.invalid(&format!("Retries.{property}"), format!(" = {number} is not possible: it must be 0 to {most}")))
        }
        number => Ok(number),
    };
    Ok(RetryWish {
        infrastructure: number("Infrastructure", section.infrastructure, MAX_RETRIES)?.and_then(|number| number.try_into().ok()),
        user_code: number("UserCode", section.user_code, MAX_RETRIES)?.and_then(|number| number.try_into().ok()),
        backoff_seconds: number("BackoffSeconds", section.backoff_seconds, MAX_BACKOFF_SECONDS)?.and_then(|number| number.try_into().ok()),
    })
}

/// What Slurm itself says to it, it is asked later.
fn slurm(asked: &RunConfiguration, places: Places<'_>) -> Result<SlurmWish> {
    let Some(section) = &asked.slurm else { return Ok(SlurmWish::default()) };
    if let Some(name) = section.rest.keys().next() {
        let known = "expected Partition, Account, Qos, TimeLimit, Gres, Memory, Cpus, Constraint or Arguments";
        return Err(places.invalid("Slurm", format!(" has the property `{}`: {known}", name.escape_debug())));
    }
    let cpus = match section.cpus.map(u32::try_from) {
        Some(Ok(cpus)) => Some(cpus),
        Some(Err(_)) => {
            return Err(places.invalid("Slurm.Cpus", format!(" = {} is not possible: it must be at least 1", section.cpus.unwrap_or(0))));
        }
        None => None,
    };
    let wish = SlurmWish {
        partition: section.partition.clone(),
        account: section.account.clone(),
        qos: section.qos.clone(),
        time_limit: section.time_limit.clone(),
        gres: section.gres.clone(),
        memory: section.memory.clone(),
        cpus,
        constraint: section.constraint.clone(),
        arguments: section.arguments.clone(),
        // Not the caller's to say.
        submit_as: None,
    };
    wish.check().map_err(|error| {
        let property = format!("Slurm.{}", error.target().unwrap_or_default());
        places.invalid(&property, format!(" = {}", error.message()))
    })?;
    Ok(wish)
}

/// What Kubernetes itself says to it, it is asked later.
fn kubernetes(asked: &RunConfiguration, places: Places<'_>) -> Result<KubernetesWish> {
    let Some(section) = &asked.kubernetes else { return Ok(KubernetesWish::default()) };
    if let Some(name) = section.rest.keys().next() {
        let known = "expected Cpus, Memory, Gpus, NodeSelector, Tolerations or PriorityClass";
        return Err(places.invalid("Kubernetes", format!(" has the property `{}`: {known}", name.escape_debug())));
    }
    let gpus = match section.gpus.map(|gpus| (gpus, u32::try_from(gpus))) {
        Some((_, Ok(gpus))) => Some(gpus),
        Some((gpus, Err(_))) => {
            return Err(places.invalid("Kubernetes.Gpus", format!(" = {gpus} is not possible: it must be 0 or more")));
        }
        None => None,
    };
    let wish = KubernetesWish {
        cpus: section.cpus.clone(),
        memory: section.memory.clone(),
        gpus,
        node_selector: section.node_selector.iter().map(|(key, value)| (key.clone(), value.clone().unwrap_or_default())).collect(),
        tolerations: section.tolerations.clone(),
        priority_class: section.priority_class.clone(),
    };
    wish.check().map_err(|error| {
        let property = format!("Kubernetes.{}", error.target().unwrap_or_default());
        places.invalid(&property, format!(" = {}", error.message()))
    })?;
    Ok(wish)
}

fn history(asked: &RunConfiguration, places: Places<'_>) -> Result<History> {
    let mut directories_to_watch: Vec<String> = Vec::new();
    for (index, folder) in asked.history.directories_to_watch.iter().enumerate() {
        let folder = relative_path(folder)
            .map_err(|why| places.invalid(&format!("History.DirectoriesToWatch[{index}]"), format!(" = `{folder}` {why}")))?;
        if !directories_to_watch.contains(&folder) {
            directories_to_watch.push(folder);
        }
    }
    Ok(History { output_collection: asked.history.output_collection, directories_to_watch })
}

/// The configuration with every default filled in and without the secrets that get this far: the password of a registry, and what
/// addresses of data hold besides their places.
fn document(asked: &RunConfiguration, definition: &Definition) -> Result<Value> {
    let mut shown = asked.clone();
    shown.target = Some(definition.target.to_string());
    hide_secrets(&mut shown);
    let environment = shown.environment.get_or_insert_with(EnvironmentDefinition::default);
    environment.python.get_or_insert_default();
    drop(environment.docker.get_or_insert_default().base_image_registry.take_password());
    let mut document = serde_json::to_value(&shown).map_err(Error::internal)?;
    // Words of our own: shown to those who use them.
    if let Some(document) = document.as_object_mut() {
        for (word, used) in
            [("retries", asked.retries.is_some()), ("slurm", asked.slurm.is_some()), ("kubernetes", asked.kubernetes.is_some())]
        {
            if !used {
                document.remove(word);
            }
        }
        if let Some(environment) = &shown.environment {
            document.insert("environment".to_owned(), environment.document());
        }
    }
    Ok(document)
}

#[cfg(test)]
mod tests;
