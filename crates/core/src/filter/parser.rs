//! Reads the text of a filter. Recursive descent over characters rather than over tokens, because what ends a value depends
//! on the field before it: the SDK writes times with a space in them and names as they are, without quotes.

use jiff::{Timestamp, civil, tz::TimeZone};
use uuid::Uuid;

use super::{Field, FieldKind, Filter, Literal, MAX_COMPARISONS, MAX_DEPTH, MAX_LENGTH, Operator, PLAIN_FIELDS};
use crate::{Error, Result};

/// Longest key that is read without quotes, in bytes. Bounded because the end of such a key has to be searched for.
const MAX_BARE_KEY: usize = 1024;

/// The status words of azureml-wire C.5, and the spelling of the founding document as an alias.
const STATUSES: [(&str, &str); 16] = [
    ("NotStarted", "NotStarted"),
    ("Starting", "Starting"),
    ("Provisioning", "Provisioning"),
    ("Preparing", "Preparing"),
    ("Queued", "Queued"),
    ("Running", "Running"),
    ("Finalizing", "Finalizing"),
    ("CancelRequested", "CancelRequested"),
    ("Completed", "Completed"),
    ("Failed", "Failed"),
    ("Canceled", "Canceled"),
    ("Cancelled", "Canceled"),
    ("NotResponding", "NotResponding"),
    ("Unapproved", "Unapproved"),
    ("Pausing", "Pausing"),
    ("Paused", "Paused"),
];

pub(super) fn parse(text: &str) -> Result<Filter> {
    if text.len() > MAX_LENGTH {
        return Err(invalid(format!("the filter has {} bytes; the limit is {MAX_LENGTH}", text.len())));
    }
    if let Some(at) = text.find('\0') {
        return Err(invalid(format!("the filter has a NUL at character {}, which no value can hold", text[..at].chars().count() + 1)));
    }
    let mut parser = Parser { text, at: 0, comparisons: 0 };
    let filter = parser.disjunction(0)?;
    parser.skip_space();
    if parser.rest().is_empty() { Ok(filter) } else { Err(parser.expected("`and`, `or` or the end")) }
}

/// A time as clients write it: `T` or a space in the middle, any number of fraction digits up to nine, `Z`, an offset or
/// nothing (UTC) at the end; a date alone is its midnight.
pub(super) fn parse_time(text: &str) -> Option<Timestamp> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Some(time);
    }
    let civil: civil::DateTime = text.parse().ok()?;
    civil.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
}

fn invalid(message: String) -> Error {
    Error::invalid(message).with_target("filter")
}

/// Makes the field of a key.
type MakeField = fn(String) -> Field;

struct Parser<'a> {
    text: &'a str,
    /// Byte offset of what has not been read yet.
    at: usize,
    comparisons: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn skip_space(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    fn expected(&self, what: &str) -> Error {
        let position = self.text[..self.at].chars().count() + 1;
        let found = match self.rest() {
            "" => "the end".to_owned(),
            rest => format!("`{}`", rest.chars().take(24).collect::<String>()),
        };
        invalid(format!("the filter does not parse: expected {what} at character {position}, found {found}"))
    }

    /// Reads `word` in any case if it stands here as a whole word.
    fn keyword(&mut self, word: &str) -> bool {
        self.skip_space();
        let found = starts_with_word(self.rest(), word);
        if found {
            self.at += word.len();
        }
        found
    }

    fn disjunction(&mut self, depth: usize) -> Result<Filter> {
        let mut parts = vec![self.conjunction(depth)?];
        while self.keyword("or") {
            parts.push(self.conjunction(depth)?);
        }
        Ok(Filter::or(parts))
    }

    fn conjunction(&mut self, depth: usize) -> Result<Filter> {
        let mut parts = vec![self.term(depth)?];
        while self.keyword("and") {
            parts.push(self.term(depth)?);
        }
        Ok(Filter::and(parts))
    }

    fn term(&mut self, depth: usize) -> Result<Filter> {
        self.skip_space();
        if !self.rest().starts_with('(') {
            return self.comparison();
        }
        if depth == MAX_DEPTH {
            return Err(invalid(format!("the filter nests parentheses deeper than {MAX_DEPTH}")));
        }
        self.at += 1;
        let inner = self.disjunction(depth + 1)?;
        self.skip_space();
        if !self.rest().starts_with(')') {
            return Err(self.expected("`and`, `or` or `)`"));
        }
        self.at += 1;
        Ok(inner)
    }

    fn comparison(&mut self) -> Result<Filter> {
        self.comparisons += 1;
        if self.comparisons > MAX_COMPARISONS {
            return Err(invalid(format!("the filter has more than {MAX_COMPARISONS} comparisons; ask in several queries")));
        }
        let field = self.field()?;
        self.skip_space();
        let operator_at = self.at;
        let Some((name, op)) = Operator::ALL.into_iter().find(|(name, _)| starts_with_word(self.rest(), name)) else {
            return Err(self.expected(&format!("one of eq, ne, gt, ge, lt, le after `{field}`")));
        };
        if op.orders() && field.kind() != FieldKind::Time {
            self.at = operator_at;
            return Err(self.expected(&format!("eq or ne, since `{field}` is not a time,")));
        }
        self.at += name.len();
        self.skip_space();
        let value = self.value(&field, op)?;
        Ok(Filter::Compare { field, op, value })
    }

    fn field(&mut self) -> Result<Field> {
        let keyed: [(&str, MakeField); 3] = [("Tags/", Field::Tag), ("Properties/", Field::Property), ("RunTypeV2/Traits/", Field::Trait)];
        for (prefix, make) in keyed {
            if starts_with_ignoring_case(self.rest(), prefix) {
                self.at += prefix.len();
                return self.key().map(make);
            }
        }
        let word = self.rest().split(|c: char| c.is_whitespace() || matches!(c, '(' | ')')).next().unwrap_or_default();
        match PLAIN_FIELDS.iter().find(|(name, _)| name.eq_ignore_ascii_case(word)) {
            Some((_, field)) => {
                self.at += word.len();
                Ok(field.clone())
            }
            None => {
                let names: Vec<&str> = PLAIN_FIELDS.iter().map(|(name, _)| *name).collect();
                Err(self.expected(&format!("`(` or one of {}, RunTypeV2/Traits/…, Tags/…, Properties/…", names.join(", "))))
            }
        }
    }

    /// The key after `Tags/`: in quotes, or everything up to the operator.
    fn key(&mut self) -> Result<String> {
        if self.rest().starts_with(['\'', '"']) {
            return self.quoted();
        }
        let rest = self.rest();
        for (index, _) in rest.match_indices(char::is_whitespace).chain([(rest.len(), "")]) {
            let (key, after) = (&rest[..index], rest[index..].trim_start());
            let ends = Operator::ALL.iter().any(|(name, _)| starts_with_word(after, name));
            let joins = ["and", "or"].iter().any(|word| starts_with_word(after, word));
            if key.is_empty() || key.len() > MAX_BARE_KEY || has_unmatched_close(key) || joins || after.is_empty() {
                break;
            }
            if ends {
                self.at += key.len();
                return Ok(key.trim_end().to_owned());
            }
        }
        Err(self.expected("a key and then one of eq, ne, gt, ge, lt, le (a key that holds `and` or `or` stands in quotes)"))
    }

    /// A text in single or double quotes, where the quote itself is written twice.
    fn quoted(&mut self) -> Result<String> {
        let quote = self.rest().chars().next().expect("only called in front of a quote");
        let mut text = String::new();
        let mut rest = self.rest()[1..].char_indices().peekable();
        while let Some((index, c)) = rest.next() {
            if c != quote {
                text.push(c);
            } else if rest.next_if(|(_, next)| *next == quote).is_some() {
                text.push(quote);
            } else {
                self.at += 1 + index + 1;
                return Ok(text);
            }
        }
        Err(self.expected(&format!("a text that ends with {quote}")))
    }

    fn value(&mut self, field: &Field, op: Operator) -> Result<Literal> {
        let start = self.at;
        let text = if self.rest().starts_with(['\'', '"']) {
            let text = self.quoted()?;
            if !self.rest().is_empty() && !self.rest().starts_with(|c: char| c.is_whitespace() || c == ')') {
                return Err(self.expected("`and`, `or`, `)` or the end (a quote inside a value is written twice)"));
            }
            text
        } else {
            let text = self.bare(field.kind());
            if text.eq_ignore_ascii_case("null") && !op.orders() && field.kind() != FieldKind::Flag {
                return Ok(Literal::Null);
            }
            if text.is_empty() {
                return Err(self.expected(&format!("a value after `{field} {op}`")));
            }
            text.to_owned()
        };
        let end = std::mem::replace(&mut self.at, start);
        let value = self.typed(field, text)?;
        self.at = end;
        Ok(value)
    }

    /// A value without quotes: one word, or for free text and times everything up to `and`, `or`, a closing parenthesis or the end.
    fn bare(&mut self, kind: FieldKind) -> &'a str {
        let rest = self.rest();
        let spaces_allowed = matches!(kind, FieldKind::Text | FieldKind::Time);
        let mut open = 0usize;
        let mut end = rest.len();
        let mut in_space = false;
        for (index, c) in rest.char_indices() {
            // Looked at once for a whole run of spaces: looking at each would cost the square of a hostile filter's length.
            let first_space = c.is_whitespace() && !in_space;
            in_space = c.is_whitespace();
            let stop = match c {
                '(' => {
                    open += 1;
                    false
                }
                ')' if open == 0 => true,
                ')' => {
                    open -= 1;
                    false
                }
                _ if first_space => {
                    let after = rest[index..].trim_start();
                    !spaces_allowed || starts_with_word(after, "and") || starts_with_word(after, "or")
                }
                _ => false,
            };
            if stop {
                end = index;
                break;
            }
        }
        let text = rest[..end].trim_end();
        self.at += text.len();
        text
    }

    fn typed(&self, field: &Field, text: String) -> Result<Literal> {
        match field.kind() {
            FieldKind::Word | FieldKind::Text => Ok(Literal::Text(text)),
            FieldKind::Time => {
                parse_time(&text).map(Literal::Time).ok_or_else(|| self.expected("a time such as 2024-12-05T20:44:53.388Z or null"))
            }
            FieldKind::Flag => match text.to_ascii_lowercase().as_str() {
                "true" => Ok(Literal::Flag(true)),
                "false" => Ok(Literal::Flag(false)),
                _ => Err(self.expected("true or false")),
            },
            FieldKind::Status => STATUSES
                .iter()
                .find(|(name, _)| name.eq_ignore_ascii_case(&text))
                .map(|(_, canonical)| Literal::Text((*canonical).to_owned()))
                .ok_or_else(|| {
                    let names: Vec<&str> = STATUSES.iter().filter(|(name, canonical)| name == canonical).map(|(name, _)| *name).collect();
                    self.expected(&format!("a status ({})", names.join(", ")))
                }),
            FieldKind::Guid => {
                Uuid::parse_str(&text).map(|id| Literal::Text(id.hyphenated().to_string())).map_err(|_| self.expected("a GUID"))
            }
            FieldKind::Mark => Err(self.expected("null: a trait is there or not")),
        }
    }
}

fn starts_with_ignoring_case(text: &str, prefix: &str) -> bool {
    text.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix))
}

/// Whether `text` starts with `word` in any case, followed by something that cannot continue it.
fn starts_with_word(text: &str, word: &str) -> bool {
    starts_with_ignoring_case(text, word)
        && text[word.len()..].chars().next().is_none_or(|next| next.is_whitespace() || matches!(next, '(' | ')' | '\'' | '"'))
}

/// Whether a `)` in `text` closes nothing in `text`, so that it must belong to the filter around it.
fn has_unmatched_close(text: &str) -> bool {
    let mut open = 0usize;
    text.chars().any(|c| match c {
        '(' => {
            open += 1;
            false
        }
        ')' if open == 0 => true,
        ')' => {
            open -= 1;
            false
        }
        _ => false,
    })
}
