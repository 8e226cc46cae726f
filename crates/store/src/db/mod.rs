//! The two databases behind one set of calls: connections, statements, rows.
//!
//! Everything above writes one SQL text with `$1` placeholders; what differs comes from [`dialect`]. Nothing here knows
//! what is stored.

mod conn;
mod connect;
pub(crate) mod dialect;
mod errors;
pub(crate) mod json;
pub(crate) mod migrate;
mod network_fs;
mod row;
mod sql;

pub(crate) use conn::Conn;
pub(crate) use connect::{Db, FILE_NAME as SQLITE_FILE};
pub(crate) use dialect::Dialect;
pub(crate) use row::{Columns, Row};
pub(crate) use sql::{Sql, Value};
