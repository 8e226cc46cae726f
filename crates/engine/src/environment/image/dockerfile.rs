//! Building an image from a Dockerfile that came with the definition: no context, once per text.

use trainyard_core::{
    container::{built_reference, full_reference, registry_of},
    environment::Progress,
};

use super::{
    super::{
        cache::BuilderLock,
        command::{Console, run_watched},
        prepare::PrepareError,
    },
    desk::{Desk, engine_words},
    inspect::{Image, inspect},
    login::Logins,
};
use crate::container::Kind;

/// A line of a build that begins a step.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Step {
    number: u64,
    of: u64,
    instruction: String,
}

/// The image of this Dockerfile: from an earlier build, or built now.
pub(super) async fn build(desk: &Desk<'_>, text: &str, console: &mut Console<'_>) -> Result<Image, PrepareError> {
    if desk.client.kind == Kind::Apptainer {
        return Err(PrepareError::Settings(
            "Apptainer cannot build a Dockerfile: build the image elsewhere and name it in BaseImage, or use a target with Podman or Docker".into(),
        ));
    }
    let tag = built_reference(text);
    let hash = tag.rsplit(':').next().unwrap_or_default();
    if let Some(image) = inspect(desk, &tag, console).await? {
        console.line(&format!("the Dockerfile was built before: {tag}"));
        return Ok(image);
    }
    let lock = BuilderLock::acquire(&desk.cache.root().join("locks").join(format!("dockerfile-{hash}.lock")), console).await?;
    if let Some(image) = inspect(desk, &tag, console).await? {
        return Ok(image);
    }
    console.line(&format!("building the image of the Dockerfile with {}", desk.engine()));
    console.progress(&Progress::step("building image"));
    let context = desk.scratch.join("context");
    let file = desk.scratch.join("Dockerfile");
    let written = std::fs::create_dir_all(&context).and_then(|()| std::fs::write(&file, text));
    written.map_err(|error| PrepareError::disk("the Dockerfile cannot be written", error))?;
    let hosts = registries(text);
    let logins = Logins::write(desk, &hosts.iter().map(String::as_str).collect::<Vec<_>>(), console)?;
    let mut command = desk.command(["build", "--network=host", "--tag", &tag]);
    command.arg("--file").arg(&file).stdin(lock.as_stdin()?);
    for limit in &desk.containers.ulimits {
        command.arg(format!("--ulimit={limit}"));
    }
    logins.apply(&mut command);
    command.arg(&context);
    let mut last = None;
    let ended = run_watched(command, console, |line| {
        let step = step(line)?;
        let progress = Progress::counted("building image", step.number, step.of, "steps");
        last = Some(step);
        Some(progress)
    });
    let ended = ended.await?;
    if !ended.status.success() {
        let words = engine_words(&ended.stderr);
        return Err(PrepareError::Resolver(match last {
            Some(Step { number, of, instruction }) => {
                let instruction = console.masked(&instruction);
                format!("the Dockerfile failed at step {number} of {of} ({instruction}): {words}")
            }
            None => format!("the Dockerfile could not be built: {words}"),
        }));
    }
    let built = inspect(desk, &tag, console).await?;
    built.ok_or_else(|| PrepareError::Resolver(format!("{} built the Dockerfile, but has no image `{tag}`", desk.engine())))
}

/// The beginning of a step: `STEP 3/7: RUN x` (Podman), `Step 3/7 : RUN x` (Docker), `#8 [stage-1 3/7] RUN x` (BuildKit).
fn step(line: &str) -> Option<Step> {
    let (numbers, instruction) = match line.find("STEP ").or_else(|| line.find("Step ")) {
        Some(at) if line[..at].is_empty() || line[..at].ends_with("] ") => line[at + "STEP ".len()..].split_once(':')?,
        _ => {
            let (head, instruction) = line.strip_prefix('#')?.split_once(" [")?.1.split_once("] ")?;
            (head.rsplit(' ').next()?, instruction)
        }
    };
    let (number, of) = numbers.trim().split_once('/')?;
    let instruction = instruction.trim().chars().take(200).collect();
    Some(Step { number: number.parse().ok()?, of: of.parse().ok()?, instruction })
}

/// The hosts of the images that a Dockerfile begins with.
fn registries(text: &str) -> Vec<String> {
    let from = |line: &str| -> Option<String> {
        let mut words = line.split_ascii_whitespace();
        if !words.next()?.eq_ignore_ascii_case("from") {
            return None;
        }
        let image = words.find(|word| !word.starts_with("--"))?;
        registry_of(&full_reference(image)).map(str::to_owned)
    };
    text.lines().filter_map(from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_read_as_every_builder_writes_them() {
        let table = [
            ("STEP 3/7: RUN pip install x", Some((3, 7, "RUN pip install x"))),
            ("[2/2] STEP 1/3: FROM a", Some((1, 3, "FROM a"))),
            ("Step 2/4 : COPY a b", Some((2, 4, "COPY a b"))),
            ("#8 [3/7] RUN false", Some((3, 7, "RUN false"))),
            ("#8 [stage-1 3/7] RUN false", Some((3, 7, "RUN false"))),
            ("#1 [internal] load build definition", None),
            ("#8 0.2 some output", None),
            ("Next Step 2/3: no", None),
            ("--> abc", None),
        ];
        for (line, expected) in table {
            let found = step(line).map(|step| (step.number, step.of, step.instruction));
            assert_eq!(found, expected.map(|(number, of, instruction): (u64, u64, &str)| (number, of, instruction.to_owned())), "{line}");
        }
    }

    #[test]
    fn the_registries_of_a_dockerfile_are_those_of_its_froms() {
        let text = "# x\nFROM --platform=linux/amd64 r.example/a AS b\nRUN true\nfrom python\n";
        assert_eq!(registries(text), ["r.example", "docker.io"]);
    }
}
