//! Filters and orders of run lists: the OData subset that clients of run history send, as data.
//!
//! [`Filter::parse`] turns text into a tree whose comparisons are already checked (known field, an operator that the field
//! takes, a value of its type); the store turns the tree into SQL and [`Filter::matches`] says what that SQL must mean.
//! Which rows are looked at, and in which dialect the text arrived, is not decided here.
//!
//! Two things differ from OData. `Tags/k ne null or Tags/k eq null` is a tautology there; here, as in the service, it asks
//! whether the key exists ([`Filter::Present`]). And values may stand without quotes, which is how the SDK writes most of them.
//! `ne` is the exact opposite of `eq`: a missing value is different from every text.

mod order;
mod parser;

use std::{borrow::Cow, fmt};

use jiff::Timestamp;

pub use order::{Direction, OrderBy, OrderField};

use crate::Result;

/// Longest filter that is read, in bytes: room for [`MAX_COMPARISONS`] of the longest run ids.
pub const MAX_LENGTH: usize = 128 * 1024;
/// Deepest nesting of parentheses.
pub const MAX_DEPTH: usize = 32;
/// Most comparisons in one filter; a chain of this many is within what the databases take as one expression.
pub const MAX_COMPARISONS: usize = 500;

/// A condition on runs (azureml-wire C.7).
///
/// Build conjunctions and disjunctions with [`Filter::and`] and [`Filter::or`], which keep trees in the one form that
/// [`Filter::parse`] also gives: no conjunction directly in a conjunction, no list of fewer than two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// All of them hold.
    And(Vec<Filter>),
    /// At least one of them holds.
    Or(Vec<Filter>),
    /// A field compared with a value.
    Compare {
        /// Left side.
        field: Field,
        /// How.
        op: Operator,
        /// Right side, of the field's type.
        value: Literal,
    },
    /// The key exists, whatever its value, be it null. Only [`Field::Tag`], [`Field::Property`] and [`Field::Trait`].
    Present {
        /// The key asked for.
        field: Field,
    },
}

/// What a filter may speak about. Names are read in any case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Field {
    /// `RunId`
    RunId,
    /// `Status`, a word of azureml-wire C.5.
    Status,
    /// `CreatedUtc`
    CreatedUtc,
    /// `StartTimeUtc`
    StartTimeUtc,
    /// `EndTimeUtc`
    EndTimeUtc,
    /// `ParentRunId`, null for a root run.
    ParentRunId,
    /// `RootRunId`, its own id for a root run.
    RootRunId,
    /// `ExperimentId`
    ExperimentId,
    /// `RunType`
    RunType,
    /// `RunTypeV2/Orchestrator`
    Orchestrator,
    /// `RunTypeV2/Traits/{trait}`, compared only with null.
    Trait(String),
    /// `Target`
    Target,
    /// `Name`
    Name,
    /// `DisplayName`
    DisplayName,
    /// `UserId`
    UserId,
    /// `Hidden`
    Hidden,
    /// `ScriptName`
    ScriptName,
    /// `Tags/{key}`
    Tag(String),
    /// `Properties/{key}`
    Property(String),
}

/// How two values are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operator {
    /// Equal; with null: has no value.
    Eq,
    /// The opposite of [`Operator::Eq`].
    Ne,
    /// After. This and the next three are for times only.
    Gt,
    /// At or after.
    Ge,
    /// Before.
    Lt,
    /// At or before.
    Le,
}

/// The right side of a comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Literal {
    /// No value.
    Null,
    /// A text; a status in its canonical spelling, an experiment id as a lower-case GUID.
    Text(String),
    /// A time.
    Time(Timestamp),
    /// `true` or `false`.
    Flag(bool),
}

/// The value of a field of one run, for [`Filter::matches`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell<'a> {
    /// The map has no such key.
    Absent,
    /// The field or key is there and has no value.
    Null,
    /// A text.
    Text(Cow<'a, str>),
    /// A time.
    Time(Timestamp),
    /// A flag.
    Flag(bool),
}

/// What kind of value a field has, and so what may stand on the right of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FieldKind {
    /// Text without spaces.
    Word,
    /// Any text.
    Text,
    Time,
    Flag,
    Status,
    Guid,
    /// There or not.
    Mark,
}

/// The fields without a key, by their names.
const PLAIN_FIELDS: [(&str, Field); 16] = [
    ("RunId", Field::RunId),
    ("Status", Field::Status),
    ("CreatedUtc", Field::CreatedUtc),
    ("StartTimeUtc", Field::StartTimeUtc),
    ("EndTimeUtc", Field::EndTimeUtc),
    ("ParentRunId", Field::ParentRunId),
    ("RootRunId", Field::RootRunId),
    ("ExperimentId", Field::ExperimentId),
    ("RunType", Field::RunType),
    ("RunTypeV2/Orchestrator", Field::Orchestrator),
    ("Target", Field::Target),
    ("Name", Field::Name),
    ("DisplayName", Field::DisplayName),
    ("UserId", Field::UserId),
    ("Hidden", Field::Hidden),
    ("ScriptName", Field::ScriptName),
];

impl Filter {
    /// Reads a filter. [`crate::ErrorKind::Invalid`] says at which character what was expected, or which limit was passed.
    pub fn parse(text: &str) -> Result<Self> {
        parser::parse(text)
    }

    /// Reads a filter that may be absent or blank, as the `filter` of a query may be.
    pub fn parse_optional(text: Option<&str>) -> Result<Option<Self>> {
        text.filter(|text| !text.trim().is_empty()).map(Self::parse).transpose()
    }

    /// The conjunction of `parts`, which must not be empty.
    pub fn and(parts: Vec<Self>) -> Self {
        let mut flat = Vec::with_capacity(parts.len());
        for part in parts {
            match part {
                Self::And(inner) => flat.extend(inner),
                Self::Or(_) | Self::Compare { .. } | Self::Present { .. } => flat.push(part),
            }
        }
        single_or(flat, Self::And)
    }

    /// The disjunction of `parts`, which must not be empty; two neighbours that ask a key for null and for not null become
    /// [`Filter::Present`].
    pub fn or(parts: Vec<Self>) -> Self {
        let mut flat = Vec::with_capacity(parts.len());
        for part in parts {
            let inner = match part {
                Self::Or(inner) => inner,
                Self::And(_) | Self::Compare { .. } | Self::Present { .. } => vec![part],
            };
            for part in inner {
                match flat.last().and_then(|before| presence(before, &part)) {
                    Some(present) => *flat.last_mut().expect("the pattern looked at the last part") = present,
                    None => flat.push(part),
                }
            }
        }
        single_or(flat, Self::Or)
    }

    /// Whether a run satisfies the filter; `cell` gives the run's value of a field.
    pub fn matches<'a>(&self, cell: &impl Fn(&Field) -> Cell<'a>) -> bool {
        match self {
            Self::And(parts) => parts.iter().all(|part| part.matches(cell)),
            Self::Or(parts) => parts.iter().any(|part| part.matches(cell)),
            Self::Compare { field, op, value } => compare(&cell(field), *op, value),
            Self::Present { field } => cell(field) != Cell::Absent,
        }
    }
}

fn single_or(mut parts: Vec<Filter>, join: fn(Vec<Filter>) -> Filter) -> Filter {
    if parts.len() == 1 { parts.remove(0) } else { join(parts) }
}

/// [`Filter::Present`] if the two are `k eq null` and `k ne null` of the same key, in either order.
fn presence(first: &Filter, second: &Filter) -> Option<Filter> {
    let (Filter::Compare { field, op, value: Literal::Null }, Filter::Compare { field: other, op: other_op, value: Literal::Null }) =
        (first, second)
    else {
        return None;
    };
    let opposite = matches!((op, other_op), (Operator::Eq, Operator::Ne) | (Operator::Ne, Operator::Eq));
    (opposite && field == other && field.has_key()).then(|| Filter::Present { field: field.clone() })
}

fn compare(cell: &Cell<'_>, op: Operator, value: &Literal) -> bool {
    let equal = match (cell, value) {
        (Cell::Absent | Cell::Null, Literal::Null) => true,
        (Cell::Text(left), Literal::Text(right)) => left == right,
        (Cell::Time(left), Literal::Time(right)) => left == right,
        (Cell::Flag(left), Literal::Flag(right)) => left == right,
        (Cell::Absent | Cell::Null | Cell::Text(_) | Cell::Time(_) | Cell::Flag(_), _) => false,
    };
    match (op, cell, value) {
        (Operator::Eq, _, _) => equal,
        (Operator::Ne, _, _) => !equal,
        (Operator::Gt, Cell::Time(left), Literal::Time(right)) => left > right,
        (Operator::Ge, Cell::Time(left), Literal::Time(right)) => left >= right,
        (Operator::Lt, Cell::Time(left), Literal::Time(right)) => left < right,
        (Operator::Le, Cell::Time(left), Literal::Time(right)) => left <= right,
        (Operator::Gt | Operator::Ge | Operator::Lt | Operator::Le, _, _) => false,
    }
}

impl Field {
    fn kind(&self) -> FieldKind {
        match self {
            Self::RunId | Self::ParentRunId | Self::RootRunId | Self::Orchestrator | Self::Target => FieldKind::Word,
            Self::RunType | Self::Name | Self::DisplayName | Self::UserId | Self::ScriptName | Self::Tag(_) | Self::Property(_) => {
                FieldKind::Text
            }
            Self::CreatedUtc | Self::StartTimeUtc | Self::EndTimeUtc => FieldKind::Time,
            Self::Hidden => FieldKind::Flag,
            Self::Status => FieldKind::Status,
            Self::ExperimentId => FieldKind::Guid,
            Self::Trait(_) => FieldKind::Mark,
        }
    }

    /// Whether the field is one key of a map, so that it can be absent.
    fn has_key(&self) -> bool {
        matches!(self, Self::Tag(_) | Self::Property(_) | Self::Trait(_))
    }
}

impl Operator {
    const ALL: [(&'static str, Self); 6] =
        [("eq", Self::Eq), ("ne", Self::Ne), ("gt", Self::Gt), ("ge", Self::Ge), ("lt", Self::Lt), ("le", Self::Le)];

    fn orders(self) -> bool {
        matches!(self, Self::Gt | Self::Ge | Self::Lt | Self::Le)
    }
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Eq => "eq",
            Self::Ne => "ne",
            Self::Gt => "gt",
            Self::Ge => "ge",
            Self::Lt => "lt",
            Self::Le => "le",
        })
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (prefix, key) = match self {
            Self::Tag(key) => ("Tags", key),
            Self::Property(key) => ("Properties", key),
            Self::Trait(key) => ("RunTypeV2/Traits", key),
            plain => {
                let (name, _) = PLAIN_FIELDS.iter().find(|(_, field)| field == plain).expect("every field without a key is in the table");
                return f.write_str(name);
            }
        };
        // A key that a reader could mistake for the rest of the comparison stands in quotes.
        if !key.is_empty() && key.chars().all(|c| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | '/' | ':')) {
            write!(f, "{prefix}/{key}")
        } else {
            write!(f, "{prefix}/{}", Quoted(key))
        }
    }
}

impl fmt::Display for Literal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Text(text) => Quoted(text).fmt(f),
            Self::Time(time) => time.fmt(f),
            Self::Flag(flag) => flag.fmt(f),
        }
    }
}

struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}'", self.0.replace('\'', "''"))
    }
}

impl fmt::Display for Filter {
    /// The filter as text that [`Filter::parse`] reads back to the same tree.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (parts, word) = match self {
            Self::And(parts) => (parts, " and "),
            Self::Or(parts) => (parts, " or "),
            Self::Compare { field, op, value } => return write!(f, "{field} {op} {value}"),
            Self::Present { field } => return write!(f, "({field} ne null or {field} eq null)"),
        };
        for (index, part) in parts.iter().enumerate() {
            if index > 0 {
                f.write_str(word)?;
            }
            match part {
                Self::And(_) | Self::Or(_) => write!(f, "({part})")?,
                Self::Compare { .. } | Self::Present { .. } => part.fmt(f)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
