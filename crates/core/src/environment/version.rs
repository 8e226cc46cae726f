//! Python versions, conda's way of constraining them, and the choice of an interpreter.
//!
//! Only final releases are known (`3.11.7`); a constraint on a pre-release is refused. [`VersionSpec`] is the grammar of
//! conda's version field: clauses joined by `,` (and) and `|` (or).

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The greatest number that a part of a version may be; keeps the search in [`closest`] small.
const MAX_PART: u32 = 199;

/// A final release of Python. Ordered by time of succession within a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PythonVersion {
    /// `3` of `3.11.7`.
    pub major: u32,
    /// `11` of `3.11.7`.
    pub minor: u32,
    /// `7` of `3.11.7`.
    pub micro: u32,
}

impl PythonVersion {
    /// The version with these parts.
    pub const fn new(major: u32, minor: u32, micro: u32) -> Self {
        Self { major, minor, micro }
    }

    fn parts(self) -> [u32; 3] {
        [self.major, self.minor, self.micro]
    }
}

impl fmt::Display for PythonVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

impl FromStr for PythonVersion {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let parts = parse_parts(text)?;
        let at = |index: usize| parts.get(index).copied().unwrap_or(0);
        Ok(Self::new(at(0), at(1), at(2)))
    }
}

impl TryFrom<String> for PythonVersion {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<PythonVersion> for String {
    fn from(version: PythonVersion) -> Self {
        version.to_string()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Operator {
    /// `=3.9`, `3.9`, `3.9.*`, `==3.9.*`: this version and what is below it.
    Within,
    /// `!=3.9.*`
    NotWithin,
    /// `==3.9`: exactly, missing parts being zero.
    Equal,
    /// `!=3.9`
    NotEqual,
    AtLeast,
    AtMost,
    Above,
    Below,
    /// `~=3.9.1`: at least that, and within all but the last part.
    Compatible,
}

impl Operator {
    fn symbol(self) -> &'static str {
        match self {
            Self::Within => "=",
            Self::NotWithin | Self::NotEqual => "!=",
            Self::Equal => "==",
            Self::AtLeast => ">=",
            Self::AtMost => "<=",
            Self::Above => ">",
            Self::Below => "<",
            Self::Compatible => "~=",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Clause {
    operator: Operator,
    /// One to three parts; none stands for any version and goes with `Within` only.
    parts: Vec<u32>,
}

impl Clause {
    fn matches(&self, version: PythonVersion) -> bool {
        let bound = self.padded();
        match self.operator {
            Operator::Within => version.parts().starts_with(&self.parts),
            Operator::NotWithin => !version.parts().starts_with(&self.parts),
            Operator::Equal => version.parts() == bound,
            Operator::NotEqual => version.parts() != bound,
            Operator::AtLeast => version.parts() >= bound,
            Operator::AtMost => version.parts() <= bound,
            Operator::Above => version.parts() > bound,
            Operator::Below => version.parts() < bound,
            Operator::Compatible => version.parts() >= bound && version.parts().starts_with(&self.parts[..self.parts.len() - 1]),
        }
    }

    fn padded(&self) -> [u32; 3] {
        let mut padded = [0; 3];
        padded[..self.parts.len()].copy_from_slice(&self.parts);
        padded
    }
}

impl fmt::Display for Clause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.parts.is_empty() {
            return f.write_str("*");
        }
        let numbers: Vec<String> = self.parts.iter().map(ToString::to_string).collect();
        let star = if self.operator == Operator::NotWithin { ".*" } else { "" };
        write!(f, "{}{}{star}", self.operator.symbol(), numbers.join("."))
    }
}

/// A constraint on the version of Python, as conda writes it. `Display` gives the canonical form, which is the same for
/// all ways of writing one constraint that differ in order, spaces or notation (`3.9.*`, `=3.9`, `3.9`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionSpec {
    /// Sorted, without repetitions: alternatives, each a list of clauses that all must hold.
    alternatives: Vec<Vec<Clause>>,
}

impl VersionSpec {
    /// Reads a version field such as `3.6.2`, `=3.9`, `==3.9.18`, `3.9.*`, `>=3.8,<3.10`, `~=3.9.1` or `3.8|3.9`.
    ///
    /// [`crate::ErrorKind::Invalid`] if it is none, names a pre-release, or can hold for no version at all.
    pub fn parse(text: &str) -> Result<Self> {
        let compact: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let mut alternatives = Vec::new();
        for alternative in compact.split('|') {
            let mut clauses = alternative.split(',').map(|clause| parse_clause(clause, text)).collect::<Result<Vec<_>>>()?;
            clauses.sort();
            clauses.dedup();
            if clauses.len() > 1 {
                clauses.retain(|clause| !clause.parts.is_empty());
            }
            if clauses.is_empty() {
                clauses.push(Clause { operator: Operator::Within, parts: Vec::new() });
            }
            alternatives.push(clauses);
        }
        alternatives.sort();
        alternatives.dedup();
        let spec = Self { alternatives };
        if spec.minors().is_empty() {
            return Err(Error::invalid(format!("no version of Python satisfies `{}`", text.trim())));
        }
        Ok(spec)
    }

    /// Whether `version` satisfies the constraint.
    pub fn matches(&self, version: PythonVersion) -> bool {
        self.alternatives.iter().any(|clauses| clauses.iter().all(|clause| clause.matches(version)))
    }

    /// The (major, minor) lines in which some release could satisfy the constraint, looked for up to a little beyond the
    /// numbers that it names: between two named numbers nothing changes.
    fn minors(&self) -> BTreeSet<(u32, u32)> {
        let clauses = || self.alternatives.iter().flatten();
        let greatest = |index: usize| clauses().filter_map(|clause| clause.parts.get(index).copied()).max().unwrap_or(0);
        let mut majors: BTreeSet<u32> = clauses().filter_map(|clause| clause.parts.first().copied()).collect();
        majors.extend([2, 3]);
        let (last_minor, last_micro) = (greatest(1).max(60) + 1, greatest(2).max(1) + 1);
        let mut found = BTreeSet::new();
        for major in majors {
            for minor in 0..=last_minor {
                if (0..=last_micro).any(|micro| self.matches(PythonVersion::new(major, minor, micro))) {
                    found.insert((major, minor));
                }
            }
        }
        found
    }
}

impl fmt::Display for VersionSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, clauses) in self.alternatives.iter().enumerate() {
            if index > 0 {
                f.write_str("|")?;
            }
            for (index, clause) in clauses.iter().enumerate() {
                let comma = if index > 0 { "," } else { "" };
                write!(f, "{comma}{clause}")?;
            }
        }
        Ok(())
    }
}

impl FromStr for VersionSpec {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

fn parse_clause(clause: &str, whole: &str) -> Result<Clause> {
    let bad = |why: &str| Error::invalid(format!("`{}` is not a Python version constraint: {why}", whole.trim()));
    let operators = [
        ("==", Operator::Equal),
        ("!=", Operator::NotEqual),
        (">=", Operator::AtLeast),
        ("<=", Operator::AtMost),
        ("~=", Operator::Compatible),
        ("=", Operator::Within),
        (">", Operator::Above),
        ("<", Operator::Below),
    ];
    let (operator, number) = operators
        .iter()
        .find_map(|(symbol, operator)| clause.strip_prefix(symbol).map(|rest| (*operator, rest)))
        .unwrap_or((Operator::Within, clause));
    let (number, starred) = match number.strip_suffix('*') {
        Some(rest) => (rest.strip_suffix('.').unwrap_or(rest), true),
        None => (number, false),
    };
    if starred && number.is_empty() {
        return match operator {
            Operator::Within | Operator::Equal => Ok(Clause { operator: Operator::Within, parts: Vec::new() }),
            _ => Err(bad("`*` can not be compared")),
        };
    }
    if number.is_empty() {
        return Err(bad("a version such as `3.9`, `3.9.*` or `>=3.8,<3.10` is expected"));
    }
    let parts = parse_parts(number).map_err(|error| bad(error.message()))?;
    let operator = match (operator, starred) {
        (Operator::Equal, true) => Operator::Within,
        (Operator::NotEqual, true) => Operator::NotWithin,
        (Operator::Compatible, true) => return Err(bad("`~=` and `.*` do not go together")),
        (other, _) => other,
    };
    if operator == Operator::Compatible && parts.len() < 2 {
        return Err(bad("`~=` needs at least two numbers"));
    }
    Ok(Clause { operator, parts })
}

/// One to three numbers, joined by dots.
fn parse_parts(text: &str) -> Result<Vec<u32>> {
    let parts: Vec<&str> = text.split('.').collect();
    if parts.len() > 3 {
        return Err(Error::invalid(format!("`{text}` has more than three numbers")));
    }
    parts
        .into_iter()
        .map(|part| {
            let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
            let number = if digits { part.parse::<u32>().ok() } else { None };
            number.filter(|number| *number <= MAX_PART).ok_or_else(|| {
                Error::invalid(format!("`{text}` is not a final release: numbers up to {MAX_PART}, joined by dots, are expected"))
            })
        })
        .collect()
}

/// The interpreter version to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The version.
    pub version: PythonVersion,
    /// Whether it satisfies the constraint.
    pub exact: bool,
}

/// Chooses from `candidates`: the newest that satisfies `spec`; else, within a major version that `spec` allows, the one
/// whose minor version is nearest to an allowed one, the newer of equals. `None` if there is no candidate of such a major
/// version.
pub fn closest(spec: &VersionSpec, candidates: &[PythonVersion]) -> Option<Choice> {
    if let Some(version) = candidates.iter().copied().filter(|version| spec.matches(*version)).max() {
        return Some(Choice { version, exact: true });
    }
    let allowed = spec.minors();
    let distance = |version: &PythonVersion| {
        allowed.iter().filter(|(major, _)| *major == version.major).map(|(_, minor)| minor.abs_diff(version.minor)).min()
    };
    candidates
        .iter()
        .filter_map(|version| distance(version).map(|distance| (distance, *version)))
        .min_by_key(|(distance, version)| (*distance, std::cmp::Reverse(*version)))
        .map(|(_, version)| Choice { version, exact: false })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v(text: &str) -> PythonVersion {
        text.parse().unwrap()
    }

    fn vs(texts: &[&str]) -> Vec<PythonVersion> {
        texts.iter().map(|text| v(text)).collect()
    }

    #[test]
    fn constraints_match_as_conda_reads_them() {
        let table: &[(&str, &[&str], &[&str])] = &[
            ("3.6.2", &["3.6.2"], &["3.6.15", "3.6.1"]),
            ("=3.6.2", &["3.6.2"], &["3.6.15"]),
            ("3.9", &["3.9.0", "3.9.18"], &["3.8.9", "3.10.0"]),
            ("==3.9", &["3.9.0"], &["3.9.18"]),
            ("3.9.*", &["3.9.0", "3.9.18"], &["3.10.0"]),
            ("=3.9.*", &["3.9.1"], &["3.10.0"]),
            ("==3.9.*", &["3.9.1"], &["3.10.0"]),
            ("3.9*", &["3.9.1"], &["3.10.0"]),
            ("3.1", &["3.1.5"], &["3.10.0", "3.11.1"]),
            (">=3.8, <3.10", &["3.8.0", "3.9.18"], &["3.7.16", "3.10.0"]),
            (">3.9", &["3.9.1", "3.10.0"], &["3.9.0"]),
            ("<=3.9", &["3.9.0", "3.8.1"], &["3.9.1"]),
            ("!=3.9.*,>=3.8", &["3.8.1", "3.10.0"], &["3.9.0", "3.9.3"]),
            ("!=3.9.3", &["3.9.2"], &["3.9.3"]),
            ("~=3.9", &["3.9.0", "3.12.1"], &["3.8.1", "4.0.0"]),
            ("~=3.9.5", &["3.9.5", "3.9.9"], &["3.9.4", "3.10.0"]),
            ("3.8|3.10", &["3.8.1", "3.10.2"], &["3.9.0"]),
            ("*", &["3.8.1", "2.7.18"], &[]),
        ];
        for (spec, yes, no) in table {
            let parsed = VersionSpec::parse(spec).unwrap();
            for version in *yes {
                assert!(parsed.matches(v(version)), "{spec} {version}");
            }
            for version in *no {
                assert!(!parsed.matches(v(version)), "{spec} {version}");
            }
        }
    }

    #[test]
    fn what_is_not_a_constraint_is_refused_with_the_reason() {
        for (text, part) in [
            ("", "is expected"),
            (">=", "is expected"),
            ("3.9.1.2", "more than three"),
            ("3.13.0rc1", "not a final release"),
            ("three", "not a final release"),
            (">=*", "can not be compared"),
            ("~=3", "two numbers"),
            ("3..9", "not a final release"),
            (">=3.9,<3.8", "no version of Python satisfies"),
            ("3.999", "up to 199"),
        ] {
            let error = VersionSpec::parse(text).unwrap_err();
            assert!(error.message().contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn one_constraint_has_one_canonical_form() {
        for same in [["3.9.*", "=3.9"], [" >=3.8 , <3.10", "<3.10,>=3.8"], ["3.8|3.9", "3.9.* | 3.8"], ["*", "=*"], ["3.9,*", "3.9"]] {
            assert_eq!(VersionSpec::parse(same[0]).unwrap().to_string(), VersionSpec::parse(same[1]).unwrap().to_string());
        }
        assert_ne!(VersionSpec::parse("==3.9").unwrap().to_string(), VersionSpec::parse("3.9").unwrap().to_string());
    }

    #[test]
    fn the_nearest_minor_of_the_same_major_is_chosen_and_newer_wins_ties() {
        let pick = |spec: &str, at_hand: &[&str]| {
            closest(&VersionSpec::parse(spec).unwrap(), &vs(at_hand)).map(|choice| (choice.version.to_string(), choice.exact))
        };
        let found = |version: &str, exact: bool| Some((version.to_string(), exact));
        assert_eq!(pick("3.6.2", &["3.11.7", "3.13.0", "2.7.18"]), found("3.11.7", false));
        assert_eq!(pick("3.6.2", &["3.6.1", "3.6.15", "3.7.1"]), found("3.6.15", false));
        assert_eq!(pick("3.9", &["3.9.1", "3.9.18", "3.10.0"]), found("3.9.18", true));
        assert_eq!(pick("3.10", &["3.9.18", "3.11.7"]), found("3.11.7", false));
        assert_eq!(pick(">=3.8,<3.10", &["3.6.15", "3.11.7"]), found("3.11.7", false));
        assert_eq!(pick("2.7", &["3.11.7"]), None);
        assert_eq!(pick(">=3", &[]), None);
        assert_eq!(pick("*", &["3.8.1", "3.12.1"]), found("3.12.1", true));
    }

    fn version() -> impl Strategy<Value = PythonVersion> {
        (2_u32..5, 0_u32..16, 0_u32..20).prop_map(|(major, minor, micro)| PythonVersion::new(major, minor, micro))
    }

    fn clause() -> impl Strategy<Value = String> {
        let number = prop_oneof![
            (2_u32..4).prop_map(|a| a.to_string()),
            (2_u32..4, 0_u32..16).prop_map(|(a, b)| format!("{a}.{b}")),
            (2_u32..4, 0_u32..16, 0_u32..20).prop_map(|(a, b, c)| format!("{a}.{b}.{c}")),
        ];
        let operator = prop::sample::select(vec!["", "=", "==", "!=", ">=", "<=", ">", "<"]);
        (operator, number).prop_map(|(operator, number)| format!("{operator}{number}"))
    }

    proptest! {
        #[test]
        fn the_choice_is_never_worse_than_any_other_candidate(
            clauses in prop::collection::vec(clause(), 1..3),
            candidates in prop::collection::vec(version(), 0..8),
        ) {
            let Ok(spec) = VersionSpec::parse(&clauses.join(",")) else { return Ok(()) };
            match closest(&spec, &candidates) {
                Some(Choice { version, exact: true }) => {
                    prop_assert!(spec.matches(version) && candidates.contains(&version));
                    prop_assert!(candidates.iter().all(|other| !spec.matches(*other) || *other <= version));
                }
                Some(Choice { version, exact: false }) => {
                    prop_assert!(candidates.contains(&version));
                    prop_assert!(candidates.iter().all(|other| !spec.matches(*other)));
                    // An independent measure: whether a line within `step` minors of the version could satisfy the constraint.
                    let reach = |version: PythonVersion, step: u32| {
                        (version.minor.saturating_sub(step)..=version.minor + step)
                            .any(|minor| (0..22).any(|micro| spec.matches(PythonVersion::new(version.major, minor, micro))))
                    };
                    for step in 0..40 {
                        let chosen = reach(version, step);
                        for other in &candidates {
                            prop_assert!(chosen || !reach(*other, step), "{other} is nearer than {version}");
                        }
                        if chosen { break }
                    }
                }
                None => prop_assert!(candidates.iter().all(|version| !spec.matches(*version))),
            }
        }

        #[test]
        fn the_canonical_form_reads_back_as_the_same_constraint(
            clauses in prop::collection::vec(clause(), 1..4),
            probe in version(),
        ) {
            let Ok(spec) = VersionSpec::parse(&clauses.join(" , ")) else { return Ok(()) };
            let again = VersionSpec::parse(&spec.to_string()).unwrap();
            prop_assert_eq!(&spec, &again);
            prop_assert_eq!(spec.matches(probe), again.matches(probe));
        }
    }
}
