//! The container that a run is to be executed in, as data, and the rules for what a definition may say about it. Finding an engine,
//! pulling, building and starting belong to the engine.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::environment::LockedImage;

/// A container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Where the image comes from.
    pub image: ImageSource,
    /// How the registry of the image is logged into; `None`: as the node is.
    #[serde(default)]
    pub registry: Option<RegistryLogin>,
    /// Size of `/dev/shm`, in bytes; `None`: the container engine's own.
    #[serde(default)]
    pub shm_bytes: Option<u64>,
    /// More arguments for the container engine's `run`, as given.
    #[serde(default)]
    pub arguments: Vec<String>,
    /// Whether the volumes that the target's configuration lists are mounted.
    #[serde(default)]
    pub shared_volumes: bool,
    /// Whether GPUs are to be seen inside.
    #[serde(default)]
    pub gpus: bool,
}

/// Where an image comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageSource {
    /// It has a name.
    Named {
        /// E.g. `docker.io/library/python:3.11` or `registry.example/team/image@sha256:…`.
        reference: String,
    },
    /// It is built from a Dockerfile without a context.
    Dockerfile {
        /// The text of the Dockerfile.
        text: String,
    },
}

/// A login at a registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryLogin {
    /// Host, with a port if need be; `None`: the one that the image's name begins with.
    #[serde(default)]
    pub address: Option<String>,
    /// User.
    pub username: String,
    /// The password, sealed with a key that only the server has: rows may hold it, nobody can read it there.
    pub sealed_password: String,
}

/// Whether the runs of a target go into containers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ContainerPolicy {
    /// Always: a definition without an image is refused.
    Required,
    /// Where the definition enables it.
    #[default]
    WhenAsked,
    /// Never: a definition that enables it is refused.
    Never,
}

/// The registry that names without a host mean.
pub const DEFAULT_REGISTRY: &str = "docker.io";

/// The name of an image with its registry, as every engine understands it: `python:3.11` is `docker.io/library/python:3.11`.
pub fn full_reference(reference: &str) -> String {
    match reference.split_once('/') {
        Some((first, _)) if is_host(first) => reference.to_owned(),
        Some(_) => format!("{DEFAULT_REGISTRY}/{reference}"),
        None => format!("{DEFAULT_REGISTRY}/library/{reference}"),
    }
}

/// The host in the name of an image; `None`: it names none.
pub fn registry_of(reference: &str) -> Option<&str> {
    reference.split_once('/').map(|(first, _)| first).filter(|first| is_host(first))
}

/// The name of an image without tag and digest.
pub fn repository(reference: &str) -> &str {
    let name = reference.split('@').next().unwrap_or(reference);
    match name.rsplit_once(':') {
        // A port is no tag.
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

/// What the image is called on a machine that is built from a Dockerfile with this text.
pub fn built_reference(dockerfile: &str) -> String {
    format!("localhost/trainyard/built:{}", hex::encode(&Sha256::digest(dockerfile)[..16]))
}

impl ImageSource {
    /// Whether this can mean the image of a lock: the same name, or the same digest.
    pub fn means(&self, locked: &LockedImage) -> bool {
        match self {
            Self::Dockerfile { text } => built_reference(text) == locked.reference,
            Self::Named { reference } => {
                let (wanted, found) = (full_reference(&locked.reference), full_reference(reference));
                let same_digest = found.split_once('@').is_some_and(|(_, digest)| digest == locked.digest);
                wanted == found || (same_digest && repository(&wanted) == repository(&found))
            }
        }
    }
}

fn is_host(part: &str) -> bool {
    part.contains(['.', ':']) || part == "localhost"
}

/// Whether this can be the name of an image. `Err` says what is wrong with it, to be put behind the name.
pub fn check_reference(reference: &str) -> Result<(), &'static str> {
    if reference.is_empty() {
        return Err("is empty");
    }
    if reference.len() > 1024 {
        return Err("is longer than 1024 characters");
    }
    if reference.starts_with('-') {
        return Err("begins with `-`, which no name of an image does");
    }
    if reference.contains("://") {
        return Err("is a URL: an image is named `registry/name:tag` or `registry/name@sha256:…`");
    }
    if !reference.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"./:@_-".contains(&byte)) {
        return Err("holds characters that no name of an image has");
    }
    match reference.split_once('@') {
        Some((_, digest)) if !is_digest(digest) => Err("has a digest that is not `sha256:` and 64 hexadecimal digits"),
        _ => Ok(()),
    }
}

/// Whether this is `sha256:` and 64 hexadecimal digits.
pub fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Reads a size as Docker writes it, e.g. `2g`, `512m`, `1.5gb`, `1048576`; `None`: it is none, or no more than zero.
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let text = text.strip_suffix('b').map_or(text.as_str(), |rest| rest.strip_suffix('i').unwrap_or(rest));
    let (number, shift) = match text.char_indices().last()? {
        (at, 'k') => (&text[..at], 10),
        (at, 'm') => (&text[..at], 20),
        (at, 'g') => (&text[..at], 30),
        (at, 't') => (&text[..at], 40),
        _ => (text, 0),
    };
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return None;
    }
    #[expect(clippy::cast_precision_loss, reason = "a factor of 2^40 at most, which is exact")]
    let bytes = number.parse::<f64>().ok()? * (1u64 << shift) as f64;
    // An exabyte is more than any machine has, and far below the greatest number.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1 and 2^60")]
    (1.0..=1.152_921_504_606_847e18).contains(&bytes).then_some(bytes as u64)
}

/// Arguments that would break what an agent relies on: its name for the container, its end, its user, its output.
const REFUSED: [(&str, &str); 25] = [
    ("--name", "the container is named after the attempt"),
    ("--replace", "the container is named after the attempt"),
    ("--rm", "the container is removed once it was looked at"),
    ("--rmi", "the image is kept for the next run"),
    ("-d", "the run ends when its container does"),
    ("--detach", "the run ends when its container does"),
    ("--detach-keys", "nothing is attached to the container but its log"),
    ("--entrypoint", "the script or command of the run is what is started"),
    ("--cidfile", "the container is found by its name"),
    ("--pidfile", "the container is found by its name"),
    ("--conmon-pidfile", "the container is found by its name"),
    ("-i", "a run has no input"),
    ("--interactive", "a run has no input"),
    ("-t", "a run has no terminal"),
    ("--tty", "a run has no terminal"),
    ("-a", "the output goes to the log of the run"),
    ("--attach", "the output goes to the log of the run"),
    ("--sig-proxy", "signals reach the run so"),
    ("--restart", "retries are asked for with Retries"),
    ("-u", "files that the run writes belong to the user of the agent"),
    ("--user", "files that the run writes belong to the user of the agent"),
    ("--userns", "files that the run writes belong to the user of the agent"),
    ("-w", "the run starts in its snapshot"),
    ("--workdir", "the run starts in its snapshot"),
    ("--pod", "the container stands alone"),
];

/// Arguments that take no value: a word after one of them would be taken for the image.
const SWITCHES: [&str; 20] = [
    "--privileged",
    "--read-only",
    "--read-only-tmpfs",
    "--init",
    "--oom-kill-disable",
    "--no-healthcheck",
    "--no-hosts",
    "--no-hostname",
    "--publish-all",
    "-P",
    "--http-proxy",
    "--quiet",
    "-q",
    "--env-host",
    "--rootfs",
    "--tls-verify",
    "--disable-content-trust",
    "--passwd",
    "--unsetenv-all",
    "--use-api-socket",
];

/// Checks more arguments of `docker run`, each one word or an option and its value in one. `Err`: the index of the first that is not allowed, and why.
pub fn check_arguments(arguments: &[String]) -> Result<(), (usize, String)> {
    let mut takes_value = false;
    for (index, argument) in arguments.iter().enumerate() {
        let refused = |why: String| Err((index, why));
        if argument.is_empty() || argument.contains(['\0', '\n']) {
            return refused("is empty, or holds a NUL or a line break".into());
        }
        let Some(option) = argument.strip_prefix('-') else {
            if !std::mem::take(&mut takes_value) {
                return refused("is not an option, nor the value of the one before it: it would be taken for the image".into());
            }
            continue;
        };
        if option.is_empty() || option == "-" {
            return refused("is not an option".into());
        }
        let name = argument.split(['=', ' ']).next().unwrap_or_default();
        if let Some((_, why)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
            return refused(format!("is not possible here: {why}"));
        }
        let is_long = name.starts_with("--");
        if !is_long && name.len() > 2 && (name.as_bytes()[1..].iter().any(|letter| b"dit".contains(letter)) && is_cluster(name)) {
            return refused("is not possible here: a run has no terminal and no input, and ends with its container".into());
        }
        // `-v/a:/b`, `-mem`, `--memory=1g` and `--memory 1g` in one word bring their value along.
        let brings_value = argument.contains(['=', ' ']) || (!is_long && name.len() > 2);
        takes_value = !brings_value && !SWITCHES.contains(&name);
    }
    Ok(())
}

/// Whether `-abc` is several switches in one word.
fn is_cluster(name: &str) -> bool {
    name[1..].bytes().all(|letter| b"ditPq".contains(&letter))
}

/// The words of arguments for a command line: an option and its value that came as one word are two.
pub fn argument_words(arguments: &[String]) -> Vec<String> {
    let split = |argument: &String| match argument.split_once(' ') {
        // With `=` before the blank, the blank belongs to the value: `--label=a b`.
        Some((option, value)) if option.starts_with('-') && !option.contains('=') => vec![option.to_owned(), value.trim_start().to_owned()],
        _ => vec![argument.clone()],
    };
    arguments.iter().flat_map(split).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(words: &[&str]) -> Result<(), (usize, String)> {
        check_arguments(&words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn a_port_is_no_tag() {
        for (reference, expected) in
            [("h:5000/a/b:1", "h:5000/a/b"), ("h:5000/a", "h:5000/a"), ("a@sha256:1", "a"), ("a:1@sha256:1", "a"), ("a", "a")]
        {
            assert_eq!(repository(reference), expected);
        }
    }

    #[test]
    fn an_image_is_that_of_a_lock_by_its_name_or_its_digest() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let locked = LockedImage { reference: "python:3.11".into(), digest: digest.clone() };
        let named = |reference: &str| ImageSource::Named { reference: reference.into() }.means(&locked);
        assert!(named("python:3.11") && named("docker.io/library/python:3.11") && named(&format!("python@{digest}")));
        assert!(!named("python:3.12") && !named(&format!("python@sha256:{}", "b".repeat(64))) && !named(&format!("other@{digest}")));
        let text = "FROM x\n".to_owned();
        let built = LockedImage { reference: built_reference(&text), digest };
        assert!(ImageSource::Dockerfile { text }.means(&built));
        assert!(!ImageSource::Dockerfile { text: "FROM y\n".into() }.means(&built));
    }

    #[test]
    fn names_without_a_registry_mean_dockers() {
        let table = [
            ("python:3.11", "docker.io/library/python:3.11"),
            ("pytorch/pytorch", "docker.io/pytorch/pytorch"),
            ("mcr.microsoft.com/azureml/base:1", "mcr.microsoft.com/azureml/base:1"),
            ("localhost/mine", "localhost/mine"),
            ("host:5000/a/b@sha256:00", "host:5000/a/b@sha256:00"),
        ];
        for (given, expected) in table {
            assert_eq!(full_reference(given), expected);
        }
        assert_eq!(registry_of("host:5000/a/b"), Some("host:5000"));
        assert_eq!(registry_of("team/image"), None);
    }

    #[test]
    fn what_cannot_be_the_name_of_an_image_is_told() {
        let digest = format!("python@sha256:{}", "a".repeat(64));
        for good in ["python", "a.b/c_d/e-f:1.0", &digest] {
            assert_eq!(check_reference(good), Ok(()), "{good}");
        }
        for bad in ["", "--privileged", "https://registry/image", "a b", "python@sha256:12", "a;rm", "ä"] {
            assert!(check_reference(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_read_as_docker_reads_them() {
        let table = [
            ("2g", 2 << 30),
            ("2G", 2 << 30),
            ("512m", 512 << 20),
            ("64k", 64 << 10),
            ("1048576", 1 << 20),
            ("1.5gb", 3 << 29),
            ("8GiB", 8 << 30),
        ];
        for (text, expected) in table {
            assert_eq!(parse_size(text), Some(expected), "{text}");
        }
        for bad in ["", "g", "-1g", "0", "two", "1e9", "1 2g", "99999999999t", "NaN", "inf"] {
            assert_eq!(parse_size(bad), None, "{bad}");
        }
    }

    #[test]
    fn arguments_that_would_break_the_contract_are_refused_with_the_reason() {
        for good in
            [&["--memory", "1g"][..], &["--memory=1g", "-v", "/a:/b", "--privileged"], &["--memory 1g"], &["-v/a:/b"], &["--ipc=host"], &[]]
        {
            assert_eq!(check(good), Ok(()), "{good:?}");
        }
        let table = [
            (&["--name", "x"][..], 0, "named after the attempt"),
            (&["--memory=1g", "--rm"], 1, "looked at"),
            (&["-d"], 0, "ends when"),
            (&["-it"], 0, "no terminal"),
            (&["--entrypoint=sh"], 0, "what is started"),
            (&["--user 1000"], 0, "belong"),
            (&["--cidfile=/x"], 0, "by its name"),
            (&["ubuntu"], 0, "taken for the image"),
            (&["--privileged", "ubuntu"], 1, "taken for the image"),
            (&["--memory", "1g", "ubuntu"], 2, "taken for the image"),
            (&["--"], 0, "not an option"),
            (&[""], 0, "empty"),
        ];
        for (words, index, why) in table {
            let (at, said) = check(words).unwrap_err();
            assert_eq!(at, index, "{words:?}");
            assert!(said.contains(why), "{words:?}: {said}");
        }
    }

    #[test]
    fn an_option_and_its_value_in_one_word_are_two_words() {
        let given = ["--memory 1g", "--label=a b", "-v", "/a b:/c"].map(str::to_owned);
        assert_eq!(argument_words(&given), ["--memory", "1g", "--label=a b", "-v", "/a b:/c"]);
    }
}
