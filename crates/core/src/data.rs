//! The data that a run reads and writes besides its snapshot and its artifacts (azureml-wire D.5): where it is, how it gets to the code, and which
//! words of the command line stand for its paths.
//!
//! A location names a datastore of the configuration, or is an address of its own. What an address holds besides its place (a user, a signature) is
//! sealed by the server before it gets here. Opening anything is the agent's business; this file only decides about text.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The datastore that every workspace has, unless the configuration says what is behind its name.
pub const DEFAULT_DATASTORE: &str = "workspaceblobstore";

/// What a run reads and writes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataSpec {
    /// What is there before the code starts.
    #[serde(default)]
    pub inputs: Vec<Input>,
    /// What the code leaves.
    #[serde(default)]
    pub outputs: Vec<Output>,
}

/// Data that is there before the code starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// Its name, which variables and arguments use; see [`check_name`].
    pub name: String,
    /// Which property of the definition it comes from.
    pub section: Section,
    /// Where it is.
    pub location: Location,
    /// How it gets there.
    pub mechanism: InputMechanism,
    /// Where it is seen, relative to the working directory; `None`: where the agent keeps it.
    #[serde(default)]
    pub path_on_compute: Option<String>,
    /// Whether it takes the place of what the snapshot has at `path_on_compute`.
    #[serde(default)]
    pub overwrite: bool,
    /// One more variable that holds its path.
    #[serde(default)]
    pub variable: Option<String>,
}

/// A place that the code writes to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// Its name; see [`check_name`].
    pub name: String,
    /// Which property of the definition it comes from.
    pub section: Section,
    /// Where it goes.
    pub location: Location,
    /// How it gets there.
    pub mechanism: OutputMechanism,
    /// Where the code writes, relative to the working directory; `None`: where the agent keeps it.
    #[serde(default)]
    pub path_on_compute: Option<String>,
    /// Whether files of the same name are replaced.
    #[serde(default)]
    pub overwrite: bool,
    /// Which files are uploaded, as patterns of [`matches()`]; empty: all.
    #[serde(default)]
    pub globs: Vec<String>,
}

/// A property of a definition that names data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Section {
    /// `DataReferences`
    References,
    /// `Data`
    Inputs,
    /// `OutputData`
    Outputs,
}

impl Section {
    /// The property.
    pub fn property(self) -> &'static str {
        match self {
            Self::References => "DataReferences",
            Self::Inputs => "Data",
            Self::Outputs => "OutputData",
        }
    }

    /// The folder that the agent keeps for it.
    pub fn folder(self) -> &'static str {
        match self {
            Self::References => "references",
            Self::Inputs => "inputs",
            Self::Outputs => "outputs",
        }
    }
}

/// How an input gets to the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InputMechanism {
    /// Only its address is told.
    Direct,
    /// The folder itself is seen; nothing may be written.
    Mount,
    /// The folder itself is seen, and may be written to.
    MountWritable,
    /// It is copied before the code starts.
    Download,
}

/// How an output gets to its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputMechanism {
    /// The folder itself is seen.
    Mount,
    /// It is copied when the code has ended.
    Upload,
}

/// Where data is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Location {
    /// On a datastore.
    Datastore {
        /// Its name, as the configuration spells it.
        name: String,
        /// Path there, of [`relative_path`]; empty: all of it.
        path: String,
    },
    /// At an address of its own.
    Url {
        /// The address without anything secret.
        shown: String,
        /// The whole address, sealed, where it holds more than is shown.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sealed: Option<String>,
    },
}

/// What is behind an address, by its scheme.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    /// A folder or file that the node sees: an absolute path, or `file:///…`.
    Path,
    /// One file at a time: `http://…`, `https://…`.
    Web,
    /// `s3://bucket/prefix`
    S3,
}

impl Medium {
    /// Of an address; `None`: nothing that can be reached.
    pub fn of(address: &str) -> Option<Self> {
        let scheme = |scheme: &str| address.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
        if address.starts_with('/') || scheme("file:///") {
            Some(Self::Path)
        } else if scheme("http://") || scheme("https://") {
            Some(Self::Web)
        } else if scheme("s3://") {
            Some(Self::S3)
        } else {
            None
        }
    }
}

impl DataSpec {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.inputs.is_empty() && self.outputs.is_empty()
    }

    /// Every location in it.
    pub fn locations(&self) -> impl Iterator<Item = &Location> {
        self.inputs.iter().map(|input| &input.location).chain(self.outputs.iter().map(|output| &output.location))
    }
}

/// The longest name of an input or output, in bytes.
const MAX_NAME: usize = 100;

/// Whether something can be called so: it becomes part of a variable's name and the name of a folder.
///
/// # Errors
/// Why not, as the rest of a sentence.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    let mut letters = name.bytes();
    let good_start = letters.next().is_some_and(|first| first.is_ascii_alphanumeric() || first == b'_');
    if good_start && letters.all(|letter| letter.is_ascii_alphanumeric() || b"_-.".contains(&letter)) && name.len() <= MAX_NAME {
        Ok(())
    } else {
        Err("is not a name: it has 1 to 100 ASCII letters, digits, `_`, `-` and `.`, and does not begin with `-` or `.`")
    }
}

/// A path with `/` between its parts and without any that mean nothing; Windows clients write `\`. Empty: the root itself.
///
/// # Errors
/// Why it is not a path inside something, as the rest of a sentence.
pub fn relative_path(path: &str) -> Result<String, &'static str> {
    let path = path.trim().replace('\\', "/");
    if path.contains('\0') {
        return Err("holds a NUL character, which no path can");
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") {
        return Err("leads outside: `..` is not allowed");
    }
    Ok(parts.join("/"))
}

/// An address without user, password, query and fragment, and whether anything was left out.
pub fn without_secrets(address: &str) -> (String, bool) {
    // In a path these characters are part of names.
    if matches!(Medium::of(address), None | Some(Medium::Path)) {
        return (address.to_owned(), false);
    }
    let end = address.find(['?', '#']).unwrap_or(address.len());
    let (place, rest) = address.split_at(end);
    let (scheme, after) = place.split_once("://").unwrap_or(("", place));
    let (authority, path) = after.find('/').map_or((after, ""), |slash| after.split_at(slash));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    (format!("{scheme}://{host}{path}"), !rest.is_empty() || host.len() != authority.len())
}

/// Where everything of a run is on the node, for the words of its command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Paths {
    /// By section and name.
    pub by_name: BTreeMap<(Section, String), String>,
}

/// What `arguments` begin with that stand for an input or an output (azureml-core, `data.constants`).
const WHOLE_WORDS: [(&str, Section); 2] = [("DatasetConsumptionConfig:", Section::Inputs), ("DatasetOutputConfig:", Section::Outputs)];

/// What stands for the path of a data reference, with its name after it.
const REFERENCE: &str = "AZUREML_DATAREFERENCE_";

impl Paths {
    /// A word of the command line with the paths in it: `$AZUREML_DATAREFERENCE_name` (also in braces) anywhere, `DatasetConsumptionConfig:name`
    /// and `DatasetOutputConfig:name` as whole words. Names that are not known stay as they are.
    pub fn fill(&self, word: &str) -> String {
        for (prefix, section) in WHOLE_WORDS {
            if let Some(path) = word.strip_prefix(prefix).and_then(|name| self.by_name.get(&(section, name.to_owned()))) {
                return path.clone();
            }
        }
        let mut filled = String::new();
        let mut rest = word;
        while let Some(at) = rest.find('$') {
            filled.push_str(&rest[..at]);
            match self.reference(&rest[at..]) {
                Some((path, length)) => {
                    filled.push_str(path);
                    rest = &rest[at + length..];
                }
                None => {
                    filled.push('$');
                    rest = &rest[at + 1..];
                }
            }
        }
        filled + rest
    }

    /// The path that `text` begins with the placeholder of, and how long that is.
    fn reference(&self, text: &str) -> Option<(&str, usize)> {
        let in_braces = text.strip_prefix("${").and_then(|rest| rest.strip_prefix(REFERENCE));
        if let Some((name, _)) = in_braces.and_then(|rest| rest.split_once('}')) {
            let path = self.by_name.get(&(Section::References, name.to_owned()))?;
            return Some((path, "${}".len() + REFERENCE.len() + name.len()));
        }
        let rest = text.strip_prefix('$')?.strip_prefix(REFERENCE)?;
        // The longest name that is not only the beginning of another word.
        let fits = |name: &str| {
            rest.strip_prefix(name).is_some_and(|after| !after.starts_with(|next: char| next.is_ascii_alphanumeric() || next == '_'))
        };
        let references = self.by_name.iter().filter(|((section, _), _)| *section == Section::References);
        let ((_, name), path) = references.filter(|((_, name), _)| fits(name)).max_by_key(|((_, name), _)| name.len())?;
        Some((path, 1 + REFERENCE.len() + name.len()))
    }
}

/// Whether a path fits a pattern: `*` stands for anything within a part of a path, `**` for any number of parts, `?` for one character.
pub fn matches(pattern: &str, path: &str) -> bool {
    let parts = |text: &str| text.split('/').filter(|part| !part.is_empty() && *part != ".").map(str::to_owned).collect::<Vec<_>>();
    parts_match(&parts(pattern), &parts(path))
}

fn parts_match(pattern: &[String], path: &[String]) -> bool {
    match pattern.split_first() {
        None => path.is_empty(),
        Some((first, rest)) if first == "**" => (0..=path.len()).any(|skipped| parts_match(rest, &path[skipped..])),
        Some((first, rest)) => path.split_first().is_some_and(|(part, others)| part_matches(first, part) && parts_match(rest, others)),
    }
}

/// One pass with one place to come back to: the last `*`.
fn part_matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t, mut back) = (0, 0, None);
    while t < text.len() {
        if pattern.get(p) == Some(&'*') {
            back = Some((p + 1, t));
            p += 1;
        } else if pattern.get(p).is_some_and(|wanted| *wanted == '?' || *wanted == text[t]) {
            (p, t) = (p + 1, t + 1);
        } else if let Some((star, at)) = back {
            (p, t) = (star, at + 1);
            back = Some((star, at + 1));
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|left| *left == '*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_scheme_says_what_is_behind_an_address() {
        let table = [
            ("/data/train", Some(Medium::Path)),
            ("file:///data", Some(Medium::Path)),
            ("HTTPS://h/f.csv", Some(Medium::Web)),
            ("s3://bucket/a", Some(Medium::S3)),
            ("data/train", None),
            ("file://host/share", None),
            ("azureml://datastores/x", None),
            ("", None),
            ("é", None),
        ];
        for (address, medium) in table {
            assert_eq!(Medium::of(address), medium, "{address}");
        }
    }

    #[test]
    fn nothing_secret_of_an_address_is_shown() {
        let table = [
            ("https://u:hunter2@h:8/a/b.csv?sig=hunter2#hunter2", "https://h:8/a/b.csv", true),
            ("https://h/a", "https://h/a", false),
            ("http://u:hunter2@h", "http://h", true),
            ("https://hunter2@h?x", "https://h", true),
            ("s3://bucket/a", "s3://bucket/a", false),
            ("/data/what?#@", "/data/what?#@", false),
        ];
        for (address, shown, secret) in table {
            assert_eq!(without_secrets(address), (shown.to_owned(), secret), "{address}");
        }
    }

    #[test]
    fn a_path_stays_inside() {
        assert_eq!(relative_path("/a//b/./c\\d/").unwrap(), "a/b/c/d");
        assert_eq!(relative_path(".").unwrap(), "");
        for bad in ["..", "a/../b", "a\\..\\..", "a\0"] {
            assert!(relative_path(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_become_variables_and_folders() {
        for good in ["a", "_x", "my-data.v2", "0"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "-x", "a b", "a/b", "a=b", "ä", &"x".repeat(101)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    fn paths() -> Paths {
        let path = |section, name: &str, path: &str| ((section, name.to_owned()), path.to_owned());
        Paths {
            by_name: [
                path(Section::References, "data", "/n/data"),
                path(Section::References, "data2", "/n/data2"),
                path(Section::References, "my-data", "/n/my"),
                path(Section::Inputs, "train", "/n/train"),
                path(Section::Outputs, "model", "/n/model"),
            ]
            .into(),
        }
    }

    #[test]
    fn the_words_of_a_command_line_get_the_paths() {
        let table = [
            ("$AZUREML_DATAREFERENCE_data", "/n/data"),
            ("$AZUREML_DATAREFERENCE_data2/x", "/n/data2/x"),
            ("--in=$AZUREML_DATAREFERENCE_data/a:$AZUREML_DATAREFERENCE_my-data", "--in=/n/data/a:/n/my"),
            ("${AZUREML_DATAREFERENCE_data}x", "/n/datax"),
            ("$AZUREML_DATAREFERENCE_data_", "$AZUREML_DATAREFERENCE_data_"),
            ("$AZUREML_DATAREFERENCE_other", "$AZUREML_DATAREFERENCE_other"),
            ("${AZUREML_DATAREFERENCE_", "${AZUREML_DATAREFERENCE_"),
            ("$5 and $HOME$", "$5 and $HOME$"),
            ("DatasetConsumptionConfig:train", "/n/train"),
            ("DatasetOutputConfig:model", "/n/model"),
            ("DatasetOutputConfig:train", "DatasetOutputConfig:train"),
            ("x DatasetOutputConfig:model", "x DatasetOutputConfig:model"),
        ];
        for (word, filled) in table {
            assert_eq!(paths().fill(word), filled, "{word}");
        }
    }

    #[test]
    fn patterns_are_read_as_the_sdk_means_them() {
        for (pattern, path, fits) in [
            ("*.csv", "a.csv", true),
            ("*.csv", "b/a.csv", false),
            ("**/*.csv", "a.csv", true),
            ("**/*.csv", "b/c/a.csv", true),
            ("b/**", "b/c/a.csv", true),
            ("b/**", "c/a.csv", false),
            ("model-?.p*t", "model-1.pkt", true),
            ("model-?.pt", "model-12.pt", false),
            ("*a*a*b", "aaaaaaaaaaab", true),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern, path), fits, "{pattern} {path}");
        }
    }

    proptest! {
        #[test]
        fn what_holds_no_placeholder_stays_as_it_is(word in "[^$]{0,30}") {
            prop_assume!(!word.starts_with("Dataset"));
            prop_assert_eq!(paths().fill(&word), word);
        }

        #[test]
        fn any_word_can_be_filled(word in "[$ {}A-Za-z_0-9é]{0,40}") {
            let _ = paths().fill(&word);
        }

        #[test]
        fn an_address_that_is_shown_shows_no_user_and_no_query(user in "[a-z]{1,8}", query in "[a-z=&]{1,8}", path in "[a-z/]{0,12}") {
            let (shown, secret) = without_secrets(&format!("https://{user}@host.example/{path}?{query}"));
            prop_assert!(secret && !shown.contains('@') && !shown.contains('?'));
        }
    }
}
