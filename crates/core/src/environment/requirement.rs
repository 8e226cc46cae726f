//! The pip list: one line at a time into a canonical form, or a refusal.
//!
//! A line is a requirement (PEP 508, or a URL alone) or a few of pip's options. Whatever depends on the snapshot or on one
//! machine's disk (`-r`, `-e`, paths), on variables, or carries credentials is refused, because the environment is shared
//! by every run whose list is the same. Which versions exist is the resolver's business.

use std::fmt;

use crate::{Error, ErrorKind, Result};

/// An option of pip that this server acts on. The order of options is kept: it is the order in which indexes are asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PipOption {
    /// `-i URL`: instead of the configured index.
    IndexUrl(String),
    /// `--extra-index-url URL`: asked as well.
    ExtraIndexUrl(String),
    /// `-f URL-or-folder`: files listed there are candidates.
    FindLinks(String),
    /// `--no-index`: only what `--find-links` names.
    NoIndex,
    /// `--pre`: pre-releases are candidates.
    Pre,
    /// `--no-binary NAME`: built from source.
    NoBinary(String),
    /// `--only-binary NAME`: never built from source.
    OnlyBinary(String),
}

impl fmt::Display for PipOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IndexUrl(url) => write!(f, "--index-url {url}"),
            Self::ExtraIndexUrl(url) => write!(f, "--extra-index-url {url}"),
            Self::FindLinks(place) => write!(f, "--find-links {place}"),
            Self::NoIndex => f.write_str("--no-index"),
            Self::Pre => f.write_str("--pre"),
            Self::NoBinary(name) => write!(f, "--no-binary {name}"),
            Self::OnlyBinary(name) => write!(f, "--only-binary {name}"),
        }
    }
}

/// One line of a pip list, in canonical form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PipLine {
    /// Nothing but space and comment.
    Empty,
    /// A requirement: name per PEP 503, extras and version clauses sorted, no insignificant spaces.
    Requirement(String),
    /// One or more options.
    Options(Vec<PipOption>),
}

impl PipLine {
    /// Reads one entry of a pip list.
    ///
    /// [`ErrorKind::Invalid`] if it can not be read, [`ErrorKind::Unsupported`] if it asks for something that this server
    /// does not act on; the sentence never repeats credentials.
    pub fn parse(entry: &str) -> Result<Self> {
        if entry.chars().any(|c| c.is_control() && c != '\t') {
            return Err(Error::invalid("a line break or control character stands in the entry: write one requirement per entry"));
        }
        let text = without_comment(entry).trim();
        if text.is_empty() {
            return Ok(Self::Empty);
        }
        if text.contains("${") {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("variables in `{}` are not expanded: the environment is built apart from the run's variables", hide_userinfo(text)),
            ));
        }
        if text.starts_with('-') { options(text).map(Self::Options) } else { requirement(text).map(Self::Requirement) }
    }
}

/// A whole pip list, in canonical form: the order and notation of requirements do not matter, the order of options does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PipList {
    /// The options, in the order given.
    pub options: Vec<PipOption>,
    /// The requirements, sorted, without repetitions.
    pub requirements: Vec<String>,
}

impl PipList {
    /// Reads all entries; errors as of [`PipLine::parse`].
    pub fn parse<'a>(entries: impl IntoIterator<Item = &'a String>) -> Result<Self> {
        let mut list = Self::default();
        for entry in entries {
            match PipLine::parse(entry)? {
                PipLine::Empty => {}
                PipLine::Requirement(requirement) => list.requirements.push(requirement),
                PipLine::Options(options) => list.options.extend(options),
            }
        }
        list.requirements.sort();
        list.requirements.dedup();
        Ok(list)
    }

    /// Whether a requirement names `package` (in PEP 503 form).
    pub fn names(&self, package: &str) -> bool {
        self.requirements.iter().any(|requirement| {
            let end = requirement.find(|c: char| !is_name(c)).unwrap_or(requirement.len());
            &requirement[..end] == package
        })
    }
}

/// The name of a package in the form of PEP 503: lower case, runs of `-`, `_` and `.` as one `-`.
pub fn normalised_name(name: &str) -> String {
    let mut normalised = String::with_capacity(name.len());
    for c in name.chars() {
        if !matches!(c, '-' | '_' | '.') {
            normalised.push(c.to_ascii_lowercase());
        } else if !normalised.ends_with('-') {
            normalised.push('-');
        }
    }
    normalised
}

/// Replaces the user and password of every URL in `text` by `***`.
pub fn hide_userinfo(text: &str) -> String {
    let mut hidden = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        hidden.push_str(before);
        let end = after.find(|c: char| c == '/' || c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '?' | '#')).unwrap_or(after.len());
        let (authority, tail) = after.split_at(end);
        match authority.rfind('@') {
            Some(at) => hidden.push_str(&format!("***{}", &authority[at..])),
            None => hidden.push_str(authority),
        }
        rest = tail;
    }
    hidden.push_str(rest);
    hidden
}

/// pip's rule: `#` starts a comment at the beginning of a line or after a space.
fn without_comment(entry: &str) -> &str {
    let mut before = ' ';
    for (at, c) in entry.char_indices() {
        if c == '#' && before.is_whitespace() {
            return &entry[..at];
        }
        before = c;
    }
    entry
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')
}

/// An ssh URL may name its user; anything else before `@` is a credential.
fn refuse_credentials(url: &str) -> Result<()> {
    if hide_userinfo(url) == url {
        return Ok(());
    }
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let authority = rest.split('/').next().unwrap_or(rest);
    let user = authority.rsplit_once('@').map_or("", |(user, _)| user);
    if scheme.ends_with("ssh") && !user.contains(':') {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Unsupported,
        format!(
            "`{}` carries credentials, which would be stored with the run: configure the index of the server instead (index_url under [environments])",
            hide_userinfo(url)
        ),
    ))
}

fn options(text: &str) -> Result<Vec<PipOption>> {
    let mut words = text.split_whitespace();
    let mut found = Vec::new();
    while let Some(word) = words.next() {
        let (name, inline) = match word.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name, Some(value)),
            _ => (word, None),
        };
        let shown = hide_userinfo(word);
        let refused = |why: &str| Err(Error::new(ErrorKind::Unsupported, format!("the pip option `{shown}` is not acted on: {why}")));
        let mut value = || {
            let value = inline.or_else(|| words.next()).unwrap_or_default();
            if value.is_empty() || value.starts_with('-') || value.contains(['"', '\'']) {
                return Err(Error::invalid(format!("the pip option `{name}` needs a value without quotes")));
            }
            refuse_credentials(value)?;
            Ok(value.to_owned())
        };
        match name {
            "-i" | "--index-url" => found.push(PipOption::IndexUrl(index(value()?)?)),
            "--extra-index-url" => found.push(PipOption::ExtraIndexUrl(index(value()?)?)),
            "-f" | "--find-links" => found.push(PipOption::FindLinks(links(value()?)?)),
            "--no-index" => found.push(PipOption::NoIndex),
            "--pre" => found.push(PipOption::Pre),
            "--no-binary" => found.extend(value()?.split(',').map(|name| PipOption::NoBinary(format_control(name)))),
            "--only-binary" => found.extend(value()?.split(',').map(|name| PipOption::OnlyBinary(format_control(name)))),
            "-r" | "--requirement" | "-c" | "--constraint" => {
                return refused("the environment is built apart from the snapshot; put the lines of the file into the `pip` list");
            }
            "-e" | "--editable" => {
                return refused(
                    "the environment is built apart from the snapshot; code of the snapshot is importable without being installed",
                );
            }
            _ => {
                return refused("known are --index-url, --extra-index-url, --find-links, --no-index, --pre, --no-binary and --only-binary");
            }
        }
    }
    Ok(found)
}

fn format_control(name: &str) -> String {
    if name.starts_with(':') { name.to_ascii_lowercase() } else { normalised_name(name) }
}

fn index(url: String) -> Result<String> {
    if url.starts_with("https://") || url.starts_with("http://") || url.starts_with("file:///") {
        Ok(url)
    } else {
        Err(Error::invalid(format!("`{url}` is not the URL of a package index: it must begin with https://, http:// or file:///")))
    }
}

fn links(place: String) -> Result<String> {
    if place.contains(',') {
        return Err(Error::new(ErrorKind::Unsupported, format!("`{place}` holds a comma, which the installer reads as a separator")));
    }
    if place.starts_with('/') || place.contains("://") {
        Ok(place)
    } else {
        Err(Error::new(
            ErrorKind::Unsupported,
            format!("`{place}` is a relative path, but the environment is built apart from the snapshot: give a URL or an absolute path"),
        ))
    }
}

fn requirement(text: &str) -> Result<String> {
    let (text, hashes) = split_hashes(text)?;
    let is_path = text.starts_with(['.', '/', '~', '\\']) || text.starts_with("file:") || text.contains(".whl") && !text.contains("://");
    if is_path {
        return Err(refuse_path(text));
    }
    let head = text.find(|c: char| !is_name(c) && c != '+').unwrap_or(text.len());
    if text[head..].starts_with("://") {
        refuse_credentials(text)?;
        return Ok(format!("{}{hashes}", collapsed(text)));
    }
    let end = text.find(|c: char| !is_name(c)).unwrap_or(text.len());
    let name = &text[..end];
    let edges = name.chars().next().zip(name.chars().next_back());
    if !edges.is_some_and(|(first, last)| first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric()) {
        return Err(Error::invalid(format!("`{}` does not begin with the name of a package", hide_userinfo(text))));
    }
    let (extras, rest) = extras(text[end..].trim_start(), text)?;
    let name = normalised_name(name);
    if let Some(url) = rest.strip_prefix('@') {
        let url = url.trim();
        if url.starts_with("file:") || !url.contains("://") {
            return Err(refuse_path(text));
        }
        refuse_credentials(url)?;
        return Ok(format!("{name}{extras} @ {}{hashes}", collapsed(url)));
    }
    let (specifiers, marker) = match rest.split_once(';') {
        Some((specifiers, marker)) => (specifiers, Some(collapsed(marker))),
        None => (rest, None),
    };
    let specifiers = specifiers_of(specifiers, text)?;
    let marker = marker.map(|marker| format!(" ; {marker}")).unwrap_or_default();
    Ok(format!("{name}{extras}{specifiers}{marker}{hashes}"))
}

fn refuse_path(text: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!(
            "`{}` is a path on a disk, but the environment is built apart from the snapshot and shared between runs: name the package and its version, and where it is found with `--find-links`",
            hide_userinfo(text)
        ),
    )
}

/// Splits `--hash=...` options off; they come back sorted, ready to be appended.
fn split_hashes(text: &str) -> Result<(&str, String)> {
    let Some(at) = text.find(" --") else { return Ok((text, String::new())) };
    let mut hashes: Vec<String> = Vec::new();
    let mut words = text[at..].split_whitespace();
    while let Some(word) = words.next() {
        let value = if word == "--hash" { words.next() } else { word.strip_prefix("--hash=") };
        let Some(value) = value else {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("`{}` after a requirement is not acted on: only --hash may stand there", hide_userinfo(word)),
            ));
        };
        hashes.push(format!(" --hash={}", value.to_ascii_lowercase()));
    }
    hashes.sort();
    Ok((text[..at].trim_end(), hashes.concat()))
}

/// `[a, B]` at the beginning of `rest`, in canonical form, and what follows.
fn extras<'a>(rest: &'a str, whole: &str) -> Result<(String, &'a str)> {
    let Some(inner) = rest.strip_prefix('[') else { return Ok((String::new(), rest)) };
    let Some((list, after)) = inner.split_once(']') else {
        return Err(Error::invalid(format!("`{whole}` has a `[` without `]`")));
    };
    let mut names: Vec<String> = list.split(',').map(|name| normalised_name(name.trim())).filter(|name| !name.is_empty()).collect();
    if let Some(bad) = names.iter().find(|name| !name.chars().all(is_name)) {
        return Err(Error::invalid(format!("`{bad}` in `{whole}` is not the name of an extra")));
    }
    names.sort();
    names.dedup();
    let canonical = if names.is_empty() { String::new() } else { format!("[{}]", names.join(",")) };
    Ok((canonical, after.trim_start()))
}

fn specifiers_of(text: &str, whole: &str) -> Result<String> {
    let compact: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    let inner = compact.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')).unwrap_or(&compact);
    if inner.is_empty() {
        return Ok(String::new());
    }
    let mut clauses: Vec<&str> = inner.split(',').collect();
    for clause in &clauses {
        let version = ["===", "==", "~=", "!=", "<=", ">=", "<", ">"].iter().find_map(|operator| clause.strip_prefix(operator));
        let valid = version.is_some_and(|version| {
            !version.is_empty() && version.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '*' | '+' | '!' | '_' | '-'))
        });
        if !valid {
            let hint = if clause.starts_with('=') { ": pip writes `==` where conda writes `=`" } else { "" };
            return Err(Error::invalid(format!("`{clause}` in `{whole}` is not a version clause of pip{hint}")));
        }
    }
    clauses.sort_unstable();
    clauses.dedup();
    Ok(clauses.join(","))
}

/// Runs of space outside quotes as one space, none at the ends.
fn collapsed(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut quote = None;
    for c in text.trim().chars() {
        match quote {
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if matches!(c, '"' | '\'') => quote = Some(c),
            None if c.is_whitespace() => {
                if !result.ends_with(' ') {
                    result.push(' ');
                }
                continue;
            }
            None => {}
        }
        result.push(c);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(entry: &str) -> String {
        match PipLine::parse(entry).unwrap() {
            PipLine::Empty => String::new(),
            PipLine::Requirement(requirement) => requirement,
            PipLine::Options(options) => options.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        }
    }

    #[test]
    fn requirements_take_one_canonical_form() {
        for (entry, expected) in [
            ("six", "six"),
            ("  Azure_ML.Defaults ", "azure-ml-defaults"),
            ("Six >= 1.15 , < 2  # why", "six<2,>=1.15"),
            ("six (>=1.15,<2)", "six<2,>=1.15"),
            ("mlflow [ Extras,azure_x ] ==2.1", "mlflow[azure-x,extras]==2.1"),
            ("numpy==1.*", "numpy==1.*"),
            ("torch==2.1.0+cu118", "torch==2.1.0+cu118"),
            ("pywin32 ; sys_platform  ==  'win  32'", "pywin32 ; sys_platform == 'win  32'"),
            (
                "foo @  https://example.org/foo-1.tar.gz#sha256=ab ;  python_version>'3'",
                "foo @ https://example.org/foo-1.tar.gz#sha256=ab ; python_version>'3'",
            ),
            ("git+https://example.org/foo.git@v1#egg=foo", "git+https://example.org/foo.git@v1#egg=foo"),
            ("git+ssh://git@example.org/foo.git", "git+ssh://git@example.org/foo.git"),
            ("six==1.16.0 --hash=sha256:BB --hash=sha256:aa", "six==1.16.0 --hash=sha256:aa --hash=sha256:bb"),
            ("# only a comment", ""),
            ("", ""),
            ("-f https://example.org/stable.html", "--find-links https://example.org/stable.html"),
            (
                "--index-url=https://a.example/simple --extra-index-url https://b.example/simple",
                "--index-url https://a.example/simple --extra-index-url https://b.example/simple",
            ),
            ("--pre --no-index", "--pre --no-index"),
            ("--no-binary Foo_Bar,:all:", "--no-binary foo-bar --no-binary :all:"),
        ] {
            assert_eq!(canonical(entry), expected, "{entry}");
        }
    }

    #[test]
    fn what_can_not_be_acted_on_is_refused_with_the_reason() {
        use ErrorKind::{Invalid, Unsupported};
        for (entry, kind, part) in [
            ("-r requirements.txt", Unsupported, "apart from the snapshot"),
            ("-c constraints.txt", Unsupported, "apart from the snapshot"),
            ("-e .", Unsupported, "importable without being installed"),
            ("--trusted-host example.org", Unsupported, "known are"),
            ("./wheels/foo-1-py3-none-any.whl", Unsupported, "path on a disk"),
            ("/mnt/foo.tar.gz", Unsupported, "path on a disk"),
            ("foo @ file:///mnt/foo.whl", Unsupported, "path on a disk"),
            ("-f wheels", Unsupported, "relative path"),
            ("--index-url", Invalid, "needs a value"),
            ("--index-url example.org/simple", Invalid, "not the URL"),
            ("foo @ https://${TOKEN}@example.org/foo.whl", Unsupported, "not expanded"),
            ("six=1.16", Invalid, "pip writes `==`"),
            ("six 1.16", Invalid, "version clause"),
            ("six==", Invalid, "version clause"),
            ("six==1\n--index-url https://x", Invalid, "line break"),
            ("six[a", Invalid, "without `]`"),
            ("!six", Invalid, "name of a package"),
            ("six==1 --no-deps", Unsupported, "only --hash"),
        ] {
            let error = PipLine::parse(entry).unwrap_err();
            assert_eq!(error.kind(), kind, "{entry}: {error}");
            assert!(error.message().contains(part), "{entry}: {error}");
        }
    }

    #[test]
    fn credentials_are_refused_and_never_repeated() {
        for entry in [
            "--index-url https://user:s3cret@example.org/simple",
            "--extra-index-url=https://s3cret@example.org/simple",
            "-f https://user:s3cret@example.org/",
            "foo @ https://user:s3cret@example.org/foo.whl",
            "git+https://s3cret@example.org/foo.git",
            "git+ssh://git:s3cret@example.org/foo.git",
            "--proxy=https://user:s3cret@example.org",
            "https://user:s3c/ret@example.org/foo.whl --bad https://s3cret@example.org",
            "-r https://user:s3cret@example.org/r.txt",
        ] {
            let error = PipLine::parse(entry).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{entry}");
            assert!(!format!("{error:?}").contains("s3cret"), "{entry}: {error}");
        }
    }

    #[test]
    fn userinfo_is_hidden_wherever_it_stands() {
        assert_eq!(hide_userinfo("see https://u:p@h/x and http://t@h2?q=@ ok"), "see https://***@h/x and http://***@h2?q=@ ok");
        assert_eq!(hide_userinfo("https://h/pkg@1.0 a@b"), "https://h/pkg@1.0 a@b");
    }

    #[test]
    fn a_list_knows_the_packages_it_names() {
        let list = PipList::parse(&["Pip==23".to_owned(), "six[x]".to_owned(), "--pre".to_owned()]).unwrap();
        assert!(list.names("pip") && list.names("six"));
        assert!(!list.names("pi") && !list.names("setuptools"));
    }
}
