//! Which interpreter an image has: asked once, by running it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{
    super::{
        command::Console,
        interpreter::{Answer, Interpreter, QUESTION},
        prepare::PrepareError,
    },
    desk::{Desk, engine_words},
    inspect::Image,
};
use crate::container::Kind;

/// A program in an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Probed {
    /// The name by which it was found.
    pub(super) name: String,
    /// What it said of itself, if it is a Python.
    pub(super) interpreter: Option<Interpreter>,
    /// Whether environments can be made of it.
    pub(super) usable: bool,
}

impl Probed {
    /// What is started: its own word for where it is, or the name.
    pub(super) fn program(&self) -> PathBuf {
        // A name may be a wrapper that sets things up; only the plain names are resolved.
        match &self.interpreter {
            Some(interpreter) if !self.name.contains('/') => interpreter.path.clone(),
            _ => PathBuf::from(&self.name),
        }
    }
}

/// The program `name` of the image; `python` also means `python3`. `Ok(None)`: there is none, in the words of `Err` of the second.
pub(super) async fn find(
    desk: &Desk<'_>,
    image: &Image,
    name: &str,
    console: &mut Console<'_>,
) -> Result<Result<Probed, String>, PrepareError> {
    let names: &[&str] = if name == "python" { &["python", "python3"] } else { &[name] };
    let mut said = String::new();
    for name in names {
        match ask(desk, image, name, console).await? {
            Ok(found) => return Ok(Ok(found)),
            Err(words) => said = words,
        }
    }
    Ok(Err(format!("`{}` was not found in the image `{}`: {said}", names.join("` or `"), image.reference)))
}

async fn ask(desk: &Desk<'_>, image: &Image, name: &str, console: &mut Console<'_>) -> Result<Result<Probed, String>, PrepareError> {
    let key = hex::encode(&Sha256::digest(format!("{}\n{}\n{name}", desk.client.kind.name(), image.digest))[..16]);
    if let Some(known) = desk.cache.recall::<Probed>("programs", &key) {
        return Ok(Ok(known));
    }
    let answer = desk.call_inside(&[image.id.as_str(), name, "-c", QUESTION], console).await?;
    let said = || engine_words(&answer.err.lines().map(str::to_owned).collect::<Vec<_>>());
    if let Some(broken) = engine_failed(desk.client.kind, answer.code, &answer.err) {
        return match broken {
            Broken::NoProgram => Ok(Err(said())),
            Broken::Engine => Err(PrepareError::Settings(format!(
                "{} could not start a container of `{}`: {}{}",
                desk.engine(),
                image.reference,
                said(),
                crate::container::advice(&answer.err.to_ascii_lowercase())
            ))),
        };
    }
    let answered = answer.out.lines().rev().find_map(|line| serde_json::from_str::<Answer>(line).ok()).filter(|_| answer.ok);
    let probed = Probed {
        name: name.to_owned(),
        usable: answered.as_ref().is_some_and(|answer| answer.usable),
        interpreter: answered.map(|answer| answer.interpreter),
    };
    desk.cache.note("programs", &key, &probed);
    Ok(Ok(probed))
}

enum Broken {
    NoProgram,
    Engine,
}

/// Whether it was the engine that failed, and not the program, which may do with the question what it wants.
fn engine_failed(kind: Kind, code: Option<i32>, said: &str) -> Option<Broken> {
    let lower = said.to_ascii_lowercase();
    let no_program =
        ["executable file not found", "not found in $path", "no such file or directory", "permission denied: oci", "is a directory"];
    let is_missing = no_program.iter().any(|words| lower.contains(words)) && !lower.contains("rlimit");
    let of_the_engine = match kind {
        Kind::Apptainer => code.is_some_and(|code| crate::container::apptainer_failed(code, said)),
        _ => matches!(code, None | Some(125..=127)),
    };
    of_the_engine.then_some(if is_missing && code != Some(125) { Broken::NoProgram } else { Broken::Engine })
}
