//! The order of a list of runs.

use crate::{Error, Result};

/// Which field a list is ordered by, and which way. Runs that are equal in it, or have no value, are ordered by run id in the
/// same direction, so that the order is total; the store says where runs without a value stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OrderBy {
    /// The field.
    pub field: OrderField,
    /// Which way.
    pub direction: Direction,
}

/// What a list can be ordered by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OrderField {
    /// `CreatedUtc`
    CreatedUtc,
    /// `StartTimeUtc`; runs that have not started have none.
    StartTimeUtc,
    /// `EndTimeUtc`; runs that have not ended have none.
    EndTimeUtc,
    /// `RunId`
    RunId,
}

/// Smallest or largest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Smallest (oldest) first; what a field without a direction means.
    Ascending,
    /// Largest (newest) first.
    Descending,
}

const FIELDS: [(&str, OrderField); 4] = [
    ("CreatedUtc", OrderField::CreatedUtc),
    ("StartTimeUtc", OrderField::StartTimeUtc),
    ("EndTimeUtc", OrderField::EndTimeUtc),
    ("RunId", OrderField::RunId),
];

impl OrderBy {
    /// Reads `orderby` (`StartTimeUtc desc`, `CreatedUtc`, `StartTimeUtc desc, RunId desc`) and the separate `$sortorder`
    /// (`Asc`, `Desc`) of azureml-wire C.3, both optional and in any case. A direction in `orderby` goes before `sortorder`;
    /// `sortorder` alone orders by creation. `None`: the caller's default order.
    ///
    /// A second field may only be `RunId` in the same direction, which every order ends with anyway.
    pub fn parse(orderby: Option<&str>, sortorder: Option<&str>) -> Result<Option<Self>> {
        let sort = sortorder.map(str::trim).filter(|text| !text.is_empty()).map(|text| direction(text, "$sortorder")).transpose()?;
        let Some(text) = orderby.map(str::trim).filter(|text| !text.is_empty()) else {
            return Ok(sort.map(|direction| Self { field: OrderField::CreatedUtc, direction }));
        };
        let mut keys = text.split(',').map(|key| Self::parse_key(key, sort));
        let first = keys.next().unwrap_or_else(|| Err(unknown_field(text)))?;
        for key in keys {
            let key = key?;
            if key.field != OrderField::RunId || key.direction != first.direction {
                return Err(Error::invalid(format!(
                    "the order `{}` has a second field that is not RunId in the same direction; order by one field",
                    shown(text)
                ))
                .with_target("orderby"));
            }
        }
        Ok(Some(first))
    }

    fn parse_key(text: &str, sort: Option<Direction>) -> Result<Self> {
        let mut words = text.split_whitespace();
        let name = words.next().unwrap_or_default();
        let (_, field) = FIELDS.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).ok_or_else(|| unknown_field(name))?;
        let direction = match words.next() {
            Some(word) => direction(word, "orderby")?,
            None => sort.unwrap_or(Direction::Ascending),
        };
        match words.next() {
            None => Ok(Self { field, direction }),
            Some(word) => Err(Error::invalid(format!(
                "the order `{}` has `{}` after the direction; expected `FIELD asc` or `FIELD desc`",
                shown(text.trim()),
                shown(word)
            ))
            .with_target("orderby")),
        }
    }
}

fn direction(text: &str, target: &str) -> Result<Direction> {
    match text.to_ascii_lowercase().as_str() {
        "asc" | "ascending" => Ok(Direction::Ascending),
        "desc" | "descending" => Ok(Direction::Descending),
        _ => Err(Error::invalid(format!("`{}` is not a direction; expected asc or desc", shown(text))).with_target(target)),
    }
}

fn unknown_field(name: &str) -> Error {
    let names: Vec<&str> = FIELDS.iter().map(|(name, _)| *name).collect();
    Error::invalid(format!("runs can not be ordered by `{}`; expected one of {}", shown(name), names.join(", "))).with_target("orderby")
}

/// A piece of the request, short enough for a message.
fn shown(text: &str) -> String {
    text.chars().take(60).collect()
}
