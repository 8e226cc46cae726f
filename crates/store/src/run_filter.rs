//! Filters as SQL: the meaning is [`Filter::matches`], and a property test holds this to it.
//!
//! Every value, tag names included, is bound. There is no `not` in a filter, so that the database's "unknown" may stand for
//! "no" everywhere; `ne` alone must say "yes" to a missing value, which `is distinct from` does.

use trainyard_core::{
    filter::{Field, Filter, Literal, Operator},
    run::RunState,
};

use crate::db::{Dialect, Sql, Value, dialect::MapColumn};

const ROOT: &str = "r.root";
const NEVER: &str = "1 = 0";
const ALWAYS: &str = "1 = 1";
/// The status of a run that is asked to stop and has not stopped yet (azureml-wire C.5).
const CANCEL_REQUESTED: &str = "CancelRequested";
const ASKED_TO_STOP: &str = "(r.desired = 'Cancel' and r.state not in ('Completed', 'Failed', 'Canceled'))";

/// Appends the condition on `runs r`.
pub(crate) fn push(sql: &mut Sql, filter: &Filter, dialect: Dialect) {
    match filter {
        Filter::And(parts) => push_joined(sql, parts, " and ", dialect),
        Filter::Or(parts) => push_joined(sql, parts, " or ", dialect),
        Filter::Present { field } => push_present(sql, field, dialect),
        Filter::Compare { field, op, value } => push_comparison(sql, field, (*op, value), dialect),
    }
}

fn push_joined(sql: &mut Sql, parts: &[Filter], word: &'static str, dialect: Dialect) {
    sql.push("(");
    for (index, part) in parts.iter().enumerate() {
        if index > 0 {
            sql.push(word);
        }
        push(sql, part, dialect);
    }
    sql.push(")");
}

/// How a field is found in a row.
enum Place<'a> {
    /// A column or expression of texts.
    Text(&'static str),
    /// A column of times.
    Time(&'static str),
    /// A column of flags.
    Flag(&'static str),
    /// A key of a JSON map.
    Key(MapColumn, &'a str),
    /// State and wish together.
    Status,
    /// A word in a list.
    Trait(&'a str),
}

fn place(field: &Field, dialect: Dialect) -> Place<'_> {
    match field {
        Field::RunId => Place::Text("r.id"),
        Field::Status => Place::Status,
        Field::CreatedUtc => Place::Time("r.created_us"),
        Field::StartTimeUtc => Place::Time("r.started_us"),
        Field::EndTimeUtc => Place::Time("r.ended_us"),
        Field::ParentRunId => Place::Text("r.parent"),
        Field::RootRunId => Place::Text(ROOT),
        Field::ExperimentId => Place::Text("r.experiment"),
        Field::RunType => Place::Text("r.run_type"),
        Field::Orchestrator => Place::Text(dialect.orchestrator()),
        Field::Trait(name) => Place::Trait(name),
        Field::Target => Place::Text("r.target"),
        Field::Name => Place::Text("r.name"),
        Field::DisplayName => Place::Text("r.display_name"),
        Field::UserId => Place::Text(dialect.user_id()),
        Field::Hidden => Place::Flag("r.hidden"),
        Field::ScriptName => Place::Text("r.script_name"),
        Field::Tag(key) => Place::Key(MapColumn::Tags, key),
        Field::Property(key) => Place::Key(MapColumn::Properties, key),
    }
}

fn push_present(sql: &mut Sql, field: &Field, dialect: Dialect) {
    match place(field, dialect) {
        Place::Key(column, key) => push_around(sql, dialect.map_has_key(column), key),
        Place::Trait(name) => push_around(sql, dialect.has_trait(), name),
        // Every other field is there for every run, be it null.
        Place::Text(_) | Place::Time(_) | Place::Flag(_) | Place::Status => {
            sql.push(ALWAYS);
        }
    }
}

fn push_comparison(sql: &mut Sql, field: &Field, comparison: (Operator, &Literal), dialect: Dialect) {
    let (op, literal) = comparison;
    match (place(field, dialect), literal) {
        (Place::Text(ROOT), Literal::Text(text)) if op == Operator::Eq => push_root(sql, text),
        (Place::Text(column), Literal::Text(text)) => {
            sql.push(column);
            push_equality(sql, op, text.as_str());
        }
        (Place::Key(column, key), Literal::Text(text)) => {
            push_around(sql, dialect.map_value(column), key);
            push_equality(sql, op, text.as_str());
        }
        (Place::Flag(column), Literal::Flag(flag)) => {
            sql.push(column);
            push_equality(sql, op, *flag);
        }
        (Place::Time(column), Literal::Time(time)) => push_time(sql, column, op, *time),
        (Place::Status, Literal::Text(status)) => push_status(sql, op, status),
        (Place::Text(column) | Place::Time(column) | Place::Flag(column), Literal::Null) => {
            sql.push(column);
            push_null(sql, op);
        }
        (Place::Key(column, key), Literal::Null) => {
            push_around(sql, dialect.map_value(column), key);
            push_null(sql, op);
        }
        (Place::Trait(name), Literal::Null) if matches!(op, Operator::Eq | Operator::Ne) => {
            sql.push(if op == Operator::Eq { "not " } else { "" });
            push_around(sql, dialect.has_trait(), name);
        }
        // A status is never null, and a value of another type is never equal.
        (Place::Text(_) | Place::Key(..) | Place::Flag(_) | Place::Time(_) | Place::Status | Place::Trait(_), _) => {
            sql.push(if op == Operator::Ne { ALWAYS } else { NEVER });
        }
    }
}

/// The index of roots has only the runs that are not their own root. So said, the database sees that it and the primary key suffice.
fn push_root(sql: &mut Sql, root: &str) {
    sql.push("((r.id = ").push_value(root).push(" and r.root = r.id) or (r.root <> r.id and r.root = ").push_value(root).push("))");
}

fn push_around(sql: &mut Sql, (before, after): (&'static str, &'static str), value: &str) {
    sql.push(before).push_value(value).push(after);
}

/// After a column: equal to or different from a value. Other operators are not defined for such values and never hold.
fn push_equality(sql: &mut Sql, op: Operator, value: impl Into<Value>) {
    match op {
        Operator::Eq => sql.push(" = ").push_value(value),
        Operator::Ne => sql.push(" is distinct from ").push_value(value),
        Operator::Gt | Operator::Ge | Operator::Lt | Operator::Le => sql.push(" is null and 1 = 0"),
    };
}

fn push_null(sql: &mut Sql, op: Operator) {
    match op {
        Operator::Eq => sql.push(" is null"),
        Operator::Ne => sql.push(" is not null"),
        Operator::Gt | Operator::Ge | Operator::Lt | Operator::Le => sql.push(" is null and 1 = 0"),
    };
}

/// Rows have whole microseconds, a filter may have more digits: then no row is equal, and "after" means after the microsecond
/// that the time lies in.
fn push_time(sql: &mut Sql, column: &'static str, op: Operator, time: jiff::Timestamp) {
    let nanoseconds = time.as_nanosecond();
    let exact = nanoseconds.rem_euclid(1000) == 0;
    let floor = i64::try_from(nanoseconds.div_euclid(1000)).expect("a timestamp in microseconds has less than 64 bits");
    let op = match (op, exact) {
        (Operator::Eq, true) => " = ",
        (Operator::Ne, true) => " is distinct from ",
        (Operator::Eq, false) => {
            sql.push(NEVER);
            return;
        }
        (Operator::Ne, false) => {
            sql.push(ALWAYS);
            return;
        }
        (Operator::Gt, _) | (Operator::Ge, false) => " > ",
        (Operator::Ge, true) => " >= ",
        (Operator::Lt, true) => " < ",
        (Operator::Le, _) | (Operator::Lt, false) => " <= ",
    };
    sql.push(column).push(op).push_value(floor);
}

fn push_status(sql: &mut Sql, op: Operator, status: &str) {
    let negated = match op {
        Operator::Eq => false,
        Operator::Ne => true,
        Operator::Gt | Operator::Ge | Operator::Lt | Operator::Le => {
            sql.push(NEVER);
            return;
        }
    };
    if negated {
        sql.push("not ");
    }
    if status == CANCEL_REQUESTED {
        sql.push(ASKED_TO_STOP);
        return;
    }
    match RunState::parse(status) {
        // Words of other services' life cycles: no run of ours has them.
        None => sql.push("(1 = 0)"),
        Some(state) if state.is_terminal() => sql.push("(r.state = ").push_value(state.as_str()).push(")"),
        Some(state) => sql.push("(r.desired = 'Run' and r.state = ").push_value(state.as_str()).push(")"),
    };
}
