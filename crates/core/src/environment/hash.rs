//! The identity of an environment: what two specifications must share to be built once.
//!
//! The hash covers the canonical form of the specification and what surrounds the build ([`HashContext`]); the order and
//! notation of requirements, comments, the name of the environment and credentials do not enter.

use sha2::{Digest, Sha256};

use super::{
    CondaEnvironment, EnvironmentLock, EnvironmentSpec, MatchSpec, PipList, PythonEnvironment, VersionSpec, requirement::hide_userinfo,
};
use crate::{Result, ids::EnvironmentHash};

/// What decides the outcome of a build besides the specification.
#[derive(Clone, Copy, Debug)]
pub struct HashContext<'a> {
    /// The interpreter that was chosen, by its full version; other words may stand here where none is chosen yet.
    pub interpreter: &'a str,
    /// Operating system, architecture and C library.
    pub platform: &'a str,
    /// The indexes and link pages that the server configures, in order; credentials in them are left out of the hash.
    pub indexes: &'a [String],
    /// The version of the way of building.
    pub builder: &'a str,
}

/// The hash of named parts.
fn hash_of(parts: &[(&str, &str)]) -> Result<EnvironmentHash> {
    let mut hasher = Sha256::new();
    for (name, value) in parts {
        // Lengths keep neighbours apart: no value can pass for two.
        hasher.update(format!("{name}:{}:{value}\n", value.len()));
    }
    EnvironmentHash::new(hex::encode(&hasher.finalize()[..16]))
}

impl EnvironmentSpec {
    /// The identity of this environment. [`crate::ErrorKind::Invalid`] if the specification can not be read.
    pub fn canonical_hash(&self, context: &HashContext<'_>) -> Result<EnvironmentHash> {
        match self {
            Self::UserManaged { interpreter_path } => hash_of(&[("user-managed", interpreter_path)]),
            Self::Python(environment) => environment.canonical_hash(context),
            Self::Conda(environment) => environment.canonical_hash(context),
            Self::Locked(lock) => lock.canonical_hash(context),
        }
    }
}

impl PythonEnvironment {
    /// The Python version asked for; `None`: any.
    pub fn version_spec(&self) -> Result<Option<VersionSpec>> {
        self.python.as_deref().map(VersionSpec::parse).transpose()
    }

    /// The pip list, with the pins of the conda side, in canonical form.
    pub fn pip_list(&self) -> Result<PipList> {
        PipList::parse(self.pip.iter().chain(&self.tools))
    }

    /// The identity of this environment. [`crate::ErrorKind::Invalid`] if the specification can not be read.
    pub fn canonical_hash(&self, context: &HashContext<'_>) -> Result<EnvironmentHash> {
        let python = self.version_spec()?.map(|spec| spec.to_string()).unwrap_or_default();
        let list = self.pip_list()?;
        let options: Vec<String> = list.options.iter().map(ToString::to_string).collect();
        let indexes: Vec<String> = context.indexes.iter().map(|index| without_userinfo(index)).collect();
        let mut parts = vec![
            ("builder", context.builder),
            ("platform", context.platform),
            ("interpreter", context.interpreter),
            ("python", python.as_str()),
        ];
        parts.extend(indexes.iter().map(|index| ("index", index.as_str())));
        parts.extend(options.iter().map(|option| ("option", option.as_str())));
        parts.extend(list.requirements.iter().map(|requirement| ("requirement", requirement.as_str())));
        hash_of(&parts)
    }
}

impl CondaEnvironment {
    /// The conda packages in canonical form, as the solver gets them.
    pub fn match_specs(&self) -> Result<Vec<MatchSpec>> {
        self.packages.iter().map(|package| MatchSpec::parse(package)).collect()
    }

    /// The pip list in canonical form.
    pub fn pip_list(&self) -> Result<PipList> {
        PipList::parse(self.pip.iter())
    }

    /// The identity of this environment. [`crate::ErrorKind::Invalid`] if the specification can not be read. The channels that
    /// count are those of the context's `indexes` where the specification names none.
    pub fn canonical_hash(&self, context: &HashContext<'_>) -> Result<EnvironmentHash> {
        let list = self.pip_list()?;
        let options: Vec<String> = list.options.iter().map(ToString::to_string).collect();
        let indexes: Vec<String> = context.indexes.iter().map(|index| without_userinfo(index)).collect();
        let channels: Vec<String> = self.channels.iter().map(|channel| without_userinfo(channel.trim().trim_end_matches('/'))).collect();
        let mut packages: Vec<String> = self.match_specs()?.iter().map(ToString::to_string).collect();
        packages.sort_unstable();
        packages.dedup();
        let mut parts = vec![("builder", context.builder), ("platform", context.platform), ("interpreter", context.interpreter)];
        // It only keeps away what is never added here.
        parts.extend(channels.iter().filter(|channel| *channel != "nodefaults").map(|channel| ("channel", channel.as_str())));
        parts.extend(packages.iter().map(|package| ("conda", package.as_str())));
        parts.extend(indexes.iter().map(|index| ("index", index.as_str())));
        parts.extend(options.iter().map(|option| ("option", option.as_str())));
        parts.extend(list.requirements.iter().map(|requirement| ("requirement", requirement.as_str())));
        hash_of(&parts)
    }
}

impl EnvironmentLock {
    /// The identity of the environment that this lock describes.
    pub fn canonical_hash(&self, context: &HashContext<'_>) -> Result<EnvironmentHash> {
        let text = serde_json::to_string(self).map_err(crate::Error::internal)?;
        hash_of(&[("builder", context.builder), ("platform", context.platform), ("lock", &text)])
    }
}

fn without_userinfo(url: &str) -> String {
    hide_userinfo(url).replacen("***@", "", 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CONTEXT: HashContext<'static> = HashContext { interpreter: "3.11.7", platform: "linux-x86_64", indexes: &[], builder: "1" };

    fn environment(python: Option<&str>, pip: &[&str]) -> PythonEnvironment {
        PythonEnvironment {
            python: python.map(Into::into),
            pip: pip.iter().map(|&line| line.into()).collect(),
            tools: Vec::new(),
            channels: Vec::new(),
        }
    }

    fn hash(python: Option<&str>, pip: &[&str]) -> EnvironmentHash {
        environment(python, pip).canonical_hash(&CONTEXT).unwrap()
    }

    #[test]
    fn what_matters_changes_the_hash() {
        let base = hash(Some("3.11"), &["six==1.16.0"]);
        let others = [
            hash(Some("3.12"), &["six==1.16.0"]),
            hash(None, &["six==1.16.0"]),
            hash(Some("3.11"), &["six==1.15.0"]),
            hash(Some("3.11"), &["six==1.16.0", "attrs"]),
            hash(Some("3.11"), &["six[x]==1.16.0"]),
            hash(Some("3.11"), &["--pre", "six==1.16.0"]),
            hash(Some("3.11"), &["--extra-index-url https://a.example", "--extra-index-url https://b.example", "six==1.16.0"]),
            hash(Some("3.11"), &["--extra-index-url https://b.example", "--extra-index-url https://a.example", "six==1.16.0"]),
        ];
        let surroundings = [
            HashContext { interpreter: "3.11.8", ..CONTEXT },
            HashContext { platform: "linux-aarch64", ..CONTEXT },
            HashContext { indexes: &["https://a.example/simple".to_owned()], ..CONTEXT },
            HashContext { builder: "2", ..CONTEXT },
        ]
        .map(|context| environment(Some("3.11"), &["six==1.16.0"]).canonical_hash(&context).unwrap());
        let all: std::collections::BTreeSet<_> = others.into_iter().chain(surroundings).chain([base]).collect();
        assert_eq!(all.len(), 13);
    }

    #[test]
    fn credentials_of_an_index_do_not_enter_the_hash() {
        let with = |index: &str| {
            let indexes = [index.to_owned()];
            environment(None, &["six"]).canonical_hash(&HashContext { indexes: &indexes, ..CONTEXT }).unwrap()
        };
        assert_eq!(with("https://user:one@a.example/simple"), with("https://a.example/simple"));
        assert_eq!(with("https://user:one@a.example/simple"), with("https://user:two@a.example/simple"));
        assert_ne!(with("https://user:one@a.example/simple"), with("https://user:one@b.example/simple"));
    }

    #[test]
    fn tools_pinned_on_the_conda_side_are_requirements_like_others() {
        let tools = PythonEnvironment { tools: vec!["pip==23.*".into()], ..environment(None, &["six"]) };
        assert_eq!(tools.canonical_hash(&CONTEXT).unwrap(), hash(None, &["pip==23.*", "six"]));
    }

    fn conda(packages: &[&str], channels: &[&str]) -> EnvironmentHash {
        let owned = |list: &[&str]| list.iter().map(|&entry| entry.to_owned()).collect();
        CondaEnvironment { packages: owned(packages), channels: owned(channels), pip: vec!["six".into()] }.canonical_hash(&CONTEXT).unwrap()
    }

    #[test]
    fn order_and_notation_of_conda_packages_do_not_change_the_hash() {
        let base = conda(&["numpy=1.26", "python >=3.9,<3.12"], &["conda-forge"]);
        for same in [
            conda(&["python <3.12, >=3.9", "NumPy 1.26.*"], &["conda-forge"]),
            conda(&["numpy==1.26.* # pinned", "python[version='>=3.9,<3.12']", "numpy = 1.26"], &["conda-forge/", "nodefaults"]),
        ] {
            assert_eq!(same, base);
        }
    }

    #[test]
    fn what_matters_of_conda_packages_changes_the_hash() {
        let all = [
            conda(&["numpy=1.26"], &["a", "b"]),
            conda(&["numpy==1.26"], &["a", "b"]),
            conda(&["numpy=1.26=py_0"], &["a", "b"]),
            conda(&["a::numpy=1.26"], &["a", "b"]),
            conda(&["numpy=1.26"], &["b", "a"]),
            conda(&["numpy=1.26"], &[]),
            conda(&["numpy=1.26", "six"], &["a", "b"]),
        ];
        assert_eq!(all.iter().collect::<std::collections::BTreeSet<_>>().len(), all.len());
    }

    #[test]
    fn the_hash_of_a_specification_is_the_same_in_every_release() {
        assert_eq!(hash(Some("3.6.2"), &["azureml-defaults"]).as_str(), "dc8dea2f9fc37dfb278e3b42c7191cb2");
    }

    #[derive(Clone, Debug)]
    struct Requirement {
        words: Vec<String>,
        extras: Vec<String>,
        clauses: Vec<String>,
    }

    /// How one requirement is written down; every choice here is insignificant.
    #[derive(Clone, Debug)]
    struct Notation {
        upper: bool,
        separator: &'static str,
        space: &'static str,
        reversed: bool,
        comment: &'static str,
    }

    fn requirement() -> impl Strategy<Value = Requirement> {
        let word = "[a-z][a-z0-9]{0,4}";
        let clause = (prop::sample::select(vec!["==", ">=", "<", "!=", "~="]), 0_u8..9, 0_u8..9)
            .prop_map(|(operator, a, b)| format!("{operator}{a}.{b}"));
        (prop::collection::vec(word, 1..4), prop::collection::vec(word, 0..3), prop::collection::vec(clause, 0..3))
            .prop_map(|(words, extras, clauses)| Requirement { words, extras, clauses })
    }

    fn notation() -> impl Strategy<Value = Notation> {
        (
            any::<bool>(),
            prop::sample::select(vec!["-", "_", ".", "-_", "--"]),
            prop::sample::select(vec!["", " ", "\t", "  "]),
            any::<bool>(),
            prop::sample::select(vec!["", " # note", "  #x"]),
        )
            .prop_map(|(upper, separator, space, reversed, comment)| Notation { upper, separator, space, reversed, comment })
    }

    fn write(requirement: &Requirement, notation: &Notation) -> String {
        let case = |text: String| if notation.upper { text.to_uppercase() } else { text };
        let ordered = |list: &[String]| {
            let mut list = list.to_vec();
            if notation.reversed {
                list.reverse();
            }
            list
        };
        let space = notation.space;
        let comma = format!("{space},{space}");
        let extras = ordered(&requirement.extras).join(&comma);
        let extras = if extras.is_empty() { extras } else { format!("{space}[{space}{}{space}]", case(extras)) };
        let clauses = ordered(&requirement.clauses).join(&comma);
        format!("{space}{}{extras}{space}{clauses}{}", case(requirement.words.join(notation.separator)), notation.comment)
    }

    proptest! {
        #[test]
        fn order_and_notation_do_not_change_the_hash(
            written in prop::collection::vec((requirement(), notation(), notation()), 1..6),
            seed in any::<prop::sample::Index>(),
        ) {
            let one: Vec<String> = written.iter().map(|(requirement, first, _)| write(requirement, first)).collect();
            let mut two: Vec<String> = written.iter().map(|(requirement, _, second)| write(requirement, second)).collect();
            let middle = seed.index(two.len());
            two.rotate_left(middle);
            two.push("# a comment".into());
            let first = PythonEnvironment { python: Some("3.9.*".into()), pip: one, tools: Vec::new(), channels: Vec::new() };
            let second = PythonEnvironment { python: Some(" =3.9".into()), pip: two, tools: Vec::new(), channels: Vec::new() };
            prop_assert_eq!(first.canonical_hash(&CONTEXT).unwrap(), second.canonical_hash(&CONTEXT).unwrap());
        }

        #[test]
        fn changing_one_pin_changes_the_hash(
            mut list in prop::collection::vec(requirement(), 1..6),
            at in any::<prop::sample::Index>(),
        ) {
            let at = at.index(list.len());
            let plain = Notation { upper: false, separator: "-", space: "", reversed: false, comment: "" };
            let hash = |list: &[Requirement]| {
                let pip = list.iter().map(|requirement| write(requirement, &plain)).collect();
                PythonEnvironment { python: None, pip, tools: Vec::new(), channels: Vec::new() }.canonical_hash(&CONTEXT).unwrap()
            };
            let before = hash(&list);
            list[at].clauses.push("==77.7".into());
            prop_assert_ne!(before, hash(&list));
        }
    }
}
