//! Every table of the schema, in an order in which rows can be put back: what a row names comes before it.
//!
//! One list for reading and writing, so that no table can be in backups and not in restores. A test compares it with the schema of both
//! databases; a migration that adds a table or a column adds it here, with its version.

use serde_json::Value as Json;
use trainyard_core::{Error, Result};

use crate::db::{Columns, Row, Sql, Value};

/// What a column holds. Every one but `Flag` may be null.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    Int,
    Flag,
}

/// A column, since a version of the schema.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) since: i64,
}

/// A table, since a version of the schema.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table {
    pub(crate) name: &'static str,
    pub(crate) since: i64,
    /// The columns of the primary key, which the rows are read in the order of.
    pub(crate) key: &'static [&'static str],
    pub(crate) columns: &'static [Column],
}

const fn text(name: &'static str) -> Column {
    Column { name, kind: Kind::Text, since: 1 }
}

const fn int(name: &'static str) -> Column {
    Column { name, kind: Kind::Int, since: 1 }
}

const fn flag(name: &'static str) -> Column {
    Column { name, kind: Kind::Flag, since: 1 }
}

const fn since(version: i64, column: Column) -> Column {
    Column { since: version, ..column }
}

const fn table(name: &'static str, key: &'static [&'static str], columns: &'static [Column]) -> Table {
    Table { name, since: 1, key, columns }
}

/// The tables.
pub(crate) const TABLES: &[Table] = &[
    table(
        "workspaces",
        &["id"],
        &[
            text("id"),
            text("subscription_id"),
            text("resource_group"),
            text("name"),
            text("subscription_key"),
            text("group_key"),
            text("name_key"),
            text("region"),
            int("created_us"),
        ],
    ),
    table("apps", &["id"], &[text("id"), text("name"), text("secret_sha256"), text("grants"), int("created_us"), flag("generated")]),
    table(
        "experiments",
        &["workspace", "id"],
        &[
            text("workspace"),
            text("id"),
            text("name"),
            text("description"),
            text("tags"),
            int("created_us"),
            int("archived_us"),
            int("last_number"),
            text("latest_run_id"),
            int("latest_run_created_us"),
        ],
    ),
    table("snapshots", &["workspace", "id"], &[text("workspace"), text("id"), text("digest"), int("size_bytes"), int("created_us")]),
    table(
        "runs",
        &["workspace", "id"],
        &[
            text("workspace"),
            text("id"),
            text("uuid"),
            int("number"),
            text("experiment"),
            text("parent"),
            text("root"),
            text("ownership"),
            text("state"),
            text("desired"),
            int("version"),
            text("attempt"),
            text("cause"),
            int("created_us"),
            int("started_us"),
            int("ended_us"),
            int("priority"),
            text("target"),
            text("name"),
            text("display_name"),
            text("description"),
            text("run_type"),
            text("script_name"),
            text("cancel_reason"),
            flag("hidden"),
            text("created_by"),
            text("properties"),
            text("tags"),
            text("extra"),
            text("warnings"),
            text("error"),
            text("snapshot"),
            text("environment"),
            text("request_digest"),
            since(2, flag("silent")),
            since(2, text("retries")),
            since(2, int("not_before_us")),
            since(2, text("cancelled_by")),
            since(5, int("slots")),
        ],
    ),
    table("run_documents", &["workspace", "run"], &[text("workspace"), text("run"), text("definition"), text("document")]),
    table("events", &["workspace", "run", "seq"], &[text("workspace"), text("run"), int("seq"), int("at_us"), text("name"), text("data")]),
    table(
        "attempts",
        &["id"],
        &[
            text("id"),
            text("workspace"),
            text("run"),
            int("number"),
            text("target"),
            text("state"),
            int("intended_us"),
            int("ended_us"),
            text("cause"),
            text("node"),
            since(2, int("started_us")),
        ],
    ),
    Table {
        name: "attempt_nodes",
        since: 5,
        key: &["attempt", "node"],
        columns: &[
            since(5, text("attempt")),
            since(5, int("node")),
            since(5, text("host")),
            since(5, text("ports")),
            since(5, text("phase")),
            since(5, text("cause")),
            since(5, int("ended_us")),
        ],
    },
    table(
        "artifacts",
        &["workspace", "container", "path"],
        &[
            text("workspace"),
            text("container"),
            text("path"),
            int("size_bytes"),
            text("digest"),
            int("created_us"),
            int("updated_us"),
            since(2, text("attempt")),
        ],
    ),
    table("environments", &["hash"], &[text("hash"), text("spec"), text("lock"), int("created_us")]),
    Table { since: 2, ..table("server_settings", &["name"], &[text("name"), text("value")]) },
    Table {
        since: 3,
        ..table(
            "registered_environments",
            &["workspace", "name", "version"],
            &[
                text("workspace"),
                text("name"),
                text("version"),
                int("seq"),
                text("document"),
                text("sealed_password"),
                text("labels"),
                int("created_us"),
                text("created_by"),
            ],
        )
    },
];

/// The tables that a schema of `version` has.
pub(crate) fn tables(version: i64) -> impl Iterator<Item = &'static Table> {
    TABLES.iter().filter(move |table| table.since <= version)
}

/// The table of that name in a schema of `version`.
pub(crate) fn table_of(version: i64, name: &str) -> Option<&'static Table> {
    tables(version).find(|table| table.name == name)
}

impl Table {
    /// Its columns in a schema of `version`.
    pub(crate) fn columns(&self, version: i64) -> impl Iterator<Item = &'static Column> + use<> {
        self.columns.iter().filter(move |column| column.since <= version)
    }

    /// Reads at most `limit` rows after the one with the key `after`, in the order of the key.
    pub(crate) fn select(&self, version: i64, after: Option<&[Value]>, limit: i64) -> Sql {
        let mut sql = Sql::new("select ");
        push_list(&mut sql, self.columns(version).map(|column| column.name));
        sql.push(" from ").push(self.name);
        if let Some(after) = after {
            sql.push(" where (");
            push_list(&mut sql, self.key.iter().copied());
            sql.push(") > ").push_row(after.iter().cloned());
        }
        sql.push(" order by ");
        push_list(&mut sql, self.key.iter().copied());
        sql.push_limit(limit);
        sql
    }

    /// The beginning of a statement that inserts rows; what follows is a list of rows of [`Table::decode`].
    pub(crate) fn insert(&self, version: i64) -> Sql {
        let mut sql = Sql::new("insert into ");
        sql.push(self.name).push(" (");
        push_list(&mut sql, self.columns(version).map(|column| column.name));
        sql.push(") values ");
        sql
    }

    /// The values of a row that [`Table::select`] read.
    pub(crate) fn values(&self, version: i64, row: &Row) -> Result<Vec<Value>> {
        let mut row = row.columns();
        self.columns(version).map(|column| column.read(&mut row)).collect()
    }

    /// The values of the key in a row's values.
    pub(crate) fn key_of(&self, version: i64, values: &[Value]) -> Vec<Value> {
        let place = |name: &&str| self.columns(version).position(|column| column.name == *name);
        self.key.iter().filter_map(place).filter_map(|at| values.get(at).cloned()).collect()
    }

    /// A row as it stands in a backup: a JSON array in the order of the columns, and the way back. Invalid when it does not fit.
    pub(crate) fn decode(&self, version: i64, line: &str) -> Result<Vec<Value>> {
        let wrong = |why: String| Error::invalid(format!("a row of the table `{}` in the backup does not fit: {why}", self.name));
        let values: Vec<Json> = serde_json::from_str(line).map_err(|error| wrong(error.to_string()))?;
        let columns: Vec<&Column> = self.columns(version).collect();
        if values.len() != columns.len() {
            return Err(wrong(format!("it has {} values for {} columns", values.len(), columns.len())));
        }
        columns.iter().zip(values).map(|(column, value)| column.of_json(value).map_err(wrong)).collect()
    }
}

/// The line of a row.
pub(crate) fn encode(values: &[Value]) -> String {
    let values = values.iter().map(|value| match value {
        Value::Int(value) => Json::from(*value),
        Value::Text(value) => Json::from(value.as_deref()),
        Value::Flag(value) => Json::from(*value),
    });
    Json::Array(values.collect()).to_string()
}

impl Column {
    fn read(&self, row: &mut Columns<'_>) -> Result<Value> {
        Ok(match self.kind {
            Kind::Text => Value::Text(row.opt_text()?),
            Kind::Int => Value::Int(row.opt_int()?),
            Kind::Flag => Value::Flag(row.flag()?),
        })
    }

    fn of_json(&self, value: Json) -> Result<Value, String> {
        match (self.kind, value) {
            (Kind::Text, Json::Null) => Ok(Value::Text(None)),
            (Kind::Text, Json::String(text)) => Ok(Value::Text(Some(text))),
            (Kind::Int, Json::Null) => Ok(Value::Int(None)),
            (Kind::Int, Json::Number(number)) if number.is_i64() => Ok(Value::Int(number.as_i64())),
            (Kind::Flag, Json::Bool(flag)) => Ok(Value::Flag(flag)),
            (kind, _) => Err(format!("`{}` is not {kind:?}", self.name)),
        }
    }
}

fn push_list(sql: &mut Sql, names: impl Iterator<Item = &'static str>) {
    for (index, name) in names.enumerate() {
        if index > 0 {
            sql.push(", ");
        }
        sql.push(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::migrate;

    #[test]
    fn a_row_comes_back_from_its_line_as_it_was() {
        let table = table_of(migrate::NEWEST, "apps").unwrap();
        let row = vec![
            Value::from("id"),
            Value::from("a \"name\"\n"),
            Value::Text(None),
            Value::from("[]"),
            Value::Int(Some(i64::MIN)),
            Value::Flag(true),
        ];
        let line = encode(&row);
        assert!(!line.contains('\n'));
        assert_eq!(table.decode(migrate::NEWEST, &line).unwrap(), row);
        let message = table.decode(migrate::NEWEST, r#"["id"]"#).unwrap_err().to_string();
        assert!(message.contains("`apps`") && message.contains("1 values for 6 columns"), "{message}");
        let message = table.decode(migrate::NEWEST, r#"["id","","","",1,1]"#).unwrap_err().to_string();
        assert!(message.contains("`generated` is not Flag"), "{message}");
    }

    #[test]
    fn a_schema_has_only_what_its_version_knows() {
        assert!(table_of(1, "server_settings").is_none() && table_of(2, "registered_environments").is_none());
        let names = |version| table_of(version, "attempts").unwrap().columns(version).count();
        assert_eq!((names(1), names(2)), (10, 11));
    }
}
