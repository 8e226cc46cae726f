//! Requirements of conda (`numpy=1.26`, `conda-forge::six 1.16.0 py_0`, `python[version=">=3.9,<3.12"]`), read and brought into one form.
//!
//! The form is what is hashed and what the solver gets, so two notations of one requirement are one requirement. Whether a
//! package exists is not known here.

use std::{collections::BTreeMap, fmt};

use crate::{Error, ErrorKind, Result};

/// What may stand in brackets besides version, build and channel.
const MORE: [&str; 6] = ["build_number", "fn", "license", "md5", "sha256", "subdir"];
/// Longer ones are nobody's.
const MAX_LENGTH: usize = 1000;

/// One requirement.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MatchSpec {
    /// The only channel that it may come from: a name or a URL.
    pub channel: Option<String>,
    /// Lower case.
    pub name: String,
    /// In canonical form: `==1.2`, `1.2.*`, `<2,>=1.8`, `==1.2|>=2`; `None`: any.
    pub version: Option<String>,
    /// A build or a pattern of builds.
    pub build: Option<String>,
    /// Further conditions by their name in brackets.
    pub more: BTreeMap<String, String>,
}

impl MatchSpec {
    /// Reads what stands in an environment file. [`ErrorKind::Invalid`] for what is no requirement, [`ErrorKind::Unsupported`] for
    /// what conda knows and this server does not act on. Messages do not name the place.
    pub fn parse(entry: &str) -> Result<Self> {
        if entry.len() > MAX_LENGTH || entry.contains(|c: char| c.is_control() && c != '\t') {
            return Err(Error::invalid("a requirement has at most 1000 characters and no control characters"));
        }
        let text = entry.find(" #").map_or(entry, |comment| &entry[..comment]).trim();
        let (text, brackets) = match text.strip_suffix(']').and_then(|text| text.split_once('[')) {
            Some((text, brackets)) => (text.trim(), read_brackets(brackets, entry)?),
            None => (text, BTreeMap::new()),
        };
        let (channel, text) = match text.rsplit_once("::") {
            Some((channel, text)) => (Some(channel.trim()), text.trim()),
            None => (None, text),
        };
        let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))).unwrap_or(text.len());
        let (name, rest) = text.split_at(end);
        if name.is_empty() {
            return Err(Error::invalid(format!("`{entry}` does not begin with the name of a package")));
        }
        if rest.starts_with([':', '/']) {
            let message = format!("`{entry}` is the address of a file; list its channel under `channels` and write name=version=build");
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        let (version, build) = version_and_build(rest, entry)?;
        let mut spec = Self { channel: None, name: name.to_ascii_lowercase(), version, build, more: BTreeMap::new() };
        if let Some(channel) = channel {
            spec.set_channel(channel, entry)?;
        }
        for (key, value) in brackets {
            spec.set(&key, value, entry)?;
        }
        // What is taken is written down in this form and read again.
        if spec.to_string().len() > MAX_LENGTH {
            return Err(Error::invalid("a requirement has at most 1000 characters when it is written out in full"));
        }
        Ok(spec)
    }

    fn set_channel(&mut self, channel: &str, entry: &str) -> Result<()> {
        let wrong = channel.is_empty() || channel.contains(|c: char| c.is_whitespace() || matches!(c, '[' | ']' | '"' | '\'' | ','));
        if wrong {
            return Err(Error::invalid(format!("`{entry}` names no channel before `::`")));
        }
        // `conda-forge/noarch::six`
        let ends_in_subdir = |channel: &str| channel.rsplit_once('/').is_some_and(|(_, last)| is_subdir(last));
        let channel = channel.trim_end_matches('/');
        let (channel, subdir) = match channel.rsplit_once('/').filter(|_| ends_in_subdir(channel)) {
            Some((channel, subdir)) => (channel.trim_end_matches('/'), Some(subdir)),
            None => (channel, None),
        };
        if channel.is_empty() || ends_in_subdir(channel) {
            return Err(Error::invalid(format!("`{entry}` names no channel before `::`, or more than one part of it")));
        }
        if let Some(subdir) = subdir {
            self.more.insert("subdir".into(), subdir.to_owned());
        }
        self.channel = Some(channel.to_owned());
        Ok(())
    }

    /// One condition of the brackets.
    fn set(&mut self, key: &str, value: String, entry: &str) -> Result<()> {
        let twice = || Error::invalid(format!("`{entry}` gives {key} twice"));
        match key {
            "version" if self.version.is_some() => Err(twice()),
            "build" if self.build.is_some() => Err(twice()),
            "channel" if self.channel.is_some() => Err(twice()),
            "version" => {
                self.version = canonical_version(&close_up(&value), entry)?;
                Ok(())
            }
            "build" => {
                self.build = Some(value);
                Ok(())
            }
            "channel" => self.set_channel(&value, entry),
            _ if MORE.contains(&key) => match self.more.insert(key.to_owned(), value) {
                None => Ok(()),
                Some(_) => Err(twice()),
            },
            _ => Err(Error::new(
                ErrorKind::Unsupported,
                format!("`{entry}`: the condition `{key}` is not acted on; known are version, build, channel, {}", MORE.join(", ")),
            )),
        }
    }

    /// Whether only a name and a version are asked for.
    pub fn is_plain(&self) -> bool {
        self.channel.is_none() && self.build.is_none() && self.more.is_empty()
    }

    /// The canonical form without the channel.
    pub fn without_channel(&self) -> String {
        let version = self.version.iter().map(|version| ("version", version));
        let build = self.build.iter().map(|build| ("build", build));
        let more = self.more.iter().map(|(key, value)| (key.as_str(), value));
        let conditions: Vec<String> = version.chain(build).chain(more).map(|(key, value)| format!("{key}=\"{value}\"")).collect();
        if conditions.is_empty() { self.name.clone() } else { format!("{}[{}]", self.name, conditions.join(",")) }
    }
}

impl fmt::Display for MatchSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(channel) = &self.channel {
            write!(f, "{channel}::")?;
        }
        f.write_str(&self.without_channel())
    }
}

fn is_subdir(word: &str) -> bool {
    word == "noarch" || ["linux-", "osx-", "win-", "emscripten-", "wasi-"].iter().any(|system| word.starts_with(system))
}

/// `version='>=1,<2', build=py_0` to its conditions. Keys are lower case; values have no quotes in them.
fn read_brackets(text: &str, entry: &str) -> Result<BTreeMap<String, String>> {
    let wrong = |why: &str| Error::invalid(format!("`{entry}`: {why}; write [key=\"value\", …]"));
    let mut conditions = BTreeMap::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=').ok_or_else(|| wrong("a condition in brackets has no `=`"))?;
        let after = after.trim_start();
        let (value, tail) = match after.chars().next() {
            Some(quote @ ('"' | '\'')) => after[1..].split_once(quote).ok_or_else(|| wrong("a quote in brackets is not closed"))?,
            _ => after.find(',').map_or((after, ""), |at| after.split_at(at)),
        };
        let value = value.trim();
        if value.is_empty() || value.contains(['"', '\'', '[', ']']) {
            return Err(wrong("a condition in brackets has no value, or one with quotes in it"));
        }
        if conditions.insert(key.trim().to_ascii_lowercase(), value.to_owned()).is_some() {
            return Err(wrong("a condition in brackets stands there twice"));
        }
        let tail = tail.trim_start();
        rest = match tail.strip_prefix(',') {
            Some(tail) => tail.trim(),
            None if tail.is_empty() => tail,
            None => return Err(wrong("conditions in brackets are separated by commas")),
        };
    }
    Ok(conditions)
}

/// What follows the name: `=1.2`, ` 1.2 py_0`, `>=1,<2`, `=1.2=py_0`.
fn version_and_build(rest: &str, entry: &str) -> Result<(Option<String>, Option<String>)> {
    let close = close_up(rest.trim());
    if close.is_empty() {
        return Ok((None, None));
    }
    let mut words = close.split_whitespace();
    let (version, build) = match (words.next(), words.next(), words.next()) {
        (Some(version), build, None) => (version, build),
        _ => return Err(Error::invalid(format!("`{entry}` has too many words; write name, version and build"))),
    };
    let (version, build) = match build {
        Some(build) => (version, Some(build)),
        None => split_build(version),
    };
    let build = match build.map(|build| build.trim_start_matches('=')) {
        None | Some("*") => None,
        Some("") => return Err(Error::invalid(format!("`{entry}` has no build after `=`"))),
        Some(build) if build.contains(['"', '\'', '[', ']', '=', ',']) => {
            return Err(Error::invalid(format!("`{build}` in `{entry}` is not a build")));
        }
        Some(build) => Some(build.to_owned()),
    };
    // With a build, `=1.2=py_0`, conda means exactly that version.
    let single = version.strip_prefix('=').filter(|version| !version.starts_with('='));
    let version = match (single, &build) {
        (Some(""), _) => return Err(Error::invalid(format!("`{entry}` has no version after `=`"))),
        (Some(version), Some(_)) => canonical_version(version, entry)?,
        _ => canonical_version(version, entry)?,
    };
    Ok((version, build))
}

/// Splits `1.2=py_0` and `==1.2==py_0`.
fn split_build(version: &str) -> (&str, Option<&str>) {
    let begins = version.rfind([',', '|']).map_or(0, |at| at + 1);
    let number = version[begins..].find(|c: char| !matches!(c, '=' | '<' | '>' | '!' | '~')).map_or(version.len(), |at| begins + at);
    match version[number..].find('=') {
        Some(at) => (&version[..number + at], Some(&version[number + at + 1..])),
        None => (version, None),
    }
}

/// Clauses joined by `,` (all) and `|` (any), in order, each in one notation; `None`: any version.
fn canonical_version(text: &str, entry: &str) -> Result<Option<String>> {
    if text.contains(['(', ')']) {
        return grouped(text, entry).map(Some);
    }
    let mut any = Vec::new();
    for group in text.split('|') {
        let mut all = group.split(',').map(|clause| canonical_clause(clause, entry)).collect::<Result<Vec<_>>>()?;
        all.retain(|clause| clause != "*");
        all.sort_unstable();
        all.dedup();
        if all.is_empty() {
            return Ok(None);
        }
        any.push(all.join(","));
    }
    any.sort_unstable();
    any.dedup();
    Ok(Some(any.join("|")))
}

/// With parentheses: only spaces and case are evened out.
fn grouped(text: &str, entry: &str) -> Result<String> {
    let text: String = text.chars().filter(|c| !c.is_whitespace()).collect::<String>().to_lowercase();
    let mut depth = 0_i32;
    for c in text.chars() {
        depth += i32::from(c == '(') - i32::from(c == ')');
        if depth < 0 {
            break;
        }
    }
    let strange = |c: char| !(c.is_ascii_alphanumeric() || "()<>=!~,|.*_+-".contains(c));
    if depth == 0 && !text.contains(strange) { Ok(text) } else { Err(Error::invalid(format!("the version in `{entry}` can not be read"))) }
}

fn canonical_clause(clause: &str, entry: &str) -> Result<String> {
    let clause = clause.trim().to_lowercase();
    let bad = |why: &str| Error::invalid(format!("the version in `{entry}` can not be read: {why}"));
    let at = clause.find(|c: char| !matches!(c, '=' | '<' | '>' | '!' | '~')).unwrap_or(clause.len());
    let (operator, number) = clause.split_at(at);
    let number = number.trim();
    if !matches!(operator, "" | "=" | "==" | "!=" | ">=" | "<=" | ">" | "<" | "~=" | "!==") {
        return Err(bad(&format!("`{operator}` is not a comparison")));
    }
    if number == "*" {
        return if matches!(operator, "" | "=" | "==") { Ok("*".into()) } else { Err(bad("`*` can not be compared")) };
    }
    let (plain, starred) = match number.strip_suffix('*') {
        Some(rest) => (rest.strip_suffix('.').unwrap_or(rest), true),
        None => (number, false),
    };
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '+' | '!' | '-');
    if plain.is_empty() || !plain.chars().all(known) || !plain.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Err(bad(&format!("`{number}` is not a version")));
    }
    Ok(match operator {
        "" | "==" | "=" if starred => format!("{plain}.*"),
        "=" => format!("{plain}.*"),
        "" | "==" => format!("=={plain}"),
        "!=" if starred => format!("!={plain}.*"),
        "~=" if starred => return Err(bad("`~=` and `.*` do not go together")),
        // conda reads `>=1.2.*` as `>=1.2`.
        _ => format!("{operator}{plain}"),
    })
}

/// Takes the spaces around operators and separators away, and keeps one where words meet.
pub(super) fn close_up(entry: &str) -> String {
    let joins = |c: char| matches!(c, '=' | '<' | '>' | '!' | '~' | ',' | '|' | '(' | ')');
    let mut result = String::with_capacity(entry.len());
    for word in entry.split_whitespace() {
        if !result.is_empty() && !result.ends_with(joins) && !word.starts_with(joins) {
            result.push(' ');
        }
        result.push_str(word);
    }
    result
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn canonical(entry: &str) -> String {
        MatchSpec::parse(entry).map_or_else(|error| error.message().to_owned(), |spec| spec.to_string())
    }

    #[test]
    fn a_requirement_that_grows_too_long_when_it_is_written_out_is_refused() {
        let version = vec!["1"; 330].join("|");
        let entry = format!("six {}", (0..220).map(|number| number.to_string()).collect::<Vec<_>>().join("|"));
        assert!(entry.len() < MAX_LENGTH);
        assert!(MatchSpec::parse(&entry).unwrap_err().message().contains("written out in full"));
        assert!(MatchSpec::parse(&format!("six {version}")).is_ok(), "what is said twice is written once");
    }

    #[test]
    fn a_channel_of_slashes_or_with_two_parts_is_refused_and_one_with_a_slash_at_its_end_is_the_same() {
        for entry in ["/::-0", "//noarch::six", "a/noarch/linux-64::six", "a/noarch//noarch/::six"] {
            let error = MatchSpec::parse(entry).expect_err(entry);
            assert!(error.message().contains("names no channel before `::`"), "{entry}: {error}");
        }
        let with_slash = MatchSpec::parse("team/noarch/::six").unwrap();
        assert_eq!(with_slash, MatchSpec::parse("team/noarch::six").unwrap());
        assert_eq!(MatchSpec::parse(&with_slash.to_string()).unwrap(), with_slash);
    }

    #[test]
    fn every_notation_of_conda_is_brought_into_one_form() {
        for (entries, expected) in [
            (&["numpy", " NumPy ", "numpy *", "numpy=*", "numpy * *", "numpy # the newest"][..], "numpy"),
            (
                &[
                    "numpy=1.2",
                    "numpy =1.2",
                    "numpy = 1.2",
                    "numpy 1.2.*",
                    "numpy=1.2.*",
                    "numpy==1.2.*",
                    "numpy 1.2*",
                    "NUMPY[version='=1.2']",
                ],
                "numpy[version=\"1.2.*\"]",
            ),
            (&["numpy==1.2", "numpy 1.2", "numpy  ==  1.2", "numpy[version=1.2]", "numpy[version=\"==1.2\"]"], "numpy[version=\"==1.2\"]"),
            (&["numpy>=1.8,<2", "numpy >=1.8, <2", "numpy <2 , >= 1.8", "numpy<2,>=1.8,*"], "numpy[version=\"<2,>=1.8\"]"),
            (&["numpy=1.2|=1.3", "numpy 1.3.* | 1.2.*"], "numpy[version=\"1.2.*|1.3.*\"]"),
            (
                &[
                    "numpy=1.2=py_0",
                    "numpy 1.2 py_0",
                    "numpy==1.2=py_0",
                    "numpy==1.2==py_0",
                    "numpy[version=1.2,build=py_0]",
                    "numpy 1.2[build='py_0']",
                ],
                "numpy[version=\"==1.2\",build=\"py_0\"]",
            ),
            (&["numpy=*=*mkl*", "numpy * *mkl*", "numpy[build=\"*mkl*\"]"], "numpy[build=\"*mkl*\"]"),
            (&["conda-forge::six", "conda-forge :: six", "six[channel=conda-forge]"], "conda-forge::six"),
            (
                &["conda-forge/noarch::six=1", "six=1[channel=conda-forge,subdir=noarch]"],
                "conda-forge::six[version=\"1.*\",subdir=\"noarch\"]",
            ),
            (&["https://c.example/x::six 1.16.0"], "https://c.example/x::six[version=\"==1.16.0\"]"),
            (&["six~=1.4", "six ~= 1.4"], "six[version=\"~=1.4\"]"),
            (&["six (>=1,<2)|>3", "six ( >=1 , <2 ) | >3"], "six[version=\"(>=1,<2)|>3\"]"),
            (&["python=3.13.0rc1"], "python[version=\"3.13.0rc1.*\"]"),
        ] {
            for entry in entries {
                assert_eq!(canonical(entry), expected, "{entry}");
            }
        }
    }

    #[test]
    fn what_is_no_requirement_is_refused_with_the_reason() {
        for (entry, part) in [
            ("", "does not begin with the name"),
            ("=1.2", "does not begin with the name"),
            ("six=", "no version after `=`"),
            ("six 1 2 3", "too many words"),
            ("six=1=", "no build after `=`"),
            ("six=>1", "not a comparison"),
            ("six>=", "is not a version"),
            ("six=ü", "is not a version"),
            ("six>*", "can not be compared"),
            ("six (1", "can not be read"),
            ("::six", "names no channel"),
            ("six[version]", "has no `=`"),
            ("six[version='1]", "not closed"),
            ("six[version='1' build='2']", "separated by commas"),
            ("six=1[version=2]", "version twice"),
            ("six[when=\"x\"]", "`when` is not acted on"),
            ("https://c.example/linux-64/six-1-0.conda", "address of a file"),
            ("/srv/six-1-0.conda", "does not begin with the name"),
            ("six\u{0}", "control characters"),
        ] {
            assert!(canonical(entry).contains(part), "{entry}: {}", canonical(entry));
        }
    }

    proptest! {
        #[test]
        fn the_canonical_form_reads_back_as_the_same_requirement(entry in "([a-z]{1,4}::)?[a-zA-Z]{1,5} ?(|=|==|>=|<|!=|~=)[0-9]{1,2}(\\.[0-9]{1,2})?(\\.\\*)?(,<=9|\\|1)?( [a-z0-9_*]{1,5})?") {
            if let Ok(spec) = MatchSpec::parse(&entry) {
                prop_assert_eq!(MatchSpec::parse(&spec.to_string()).unwrap(), spec);
            }
        }

        #[test]
        fn nothing_panics(entry in "\\PC{0,40}") {
            drop(MatchSpec::parse(&entry));
        }
    }
}
