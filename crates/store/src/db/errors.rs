//! What a failure of the database means to a caller.

use trainyard_core::{Error, ErrorKind};

/// The kind and sentence for a failure that the statement's caller did not expect.
pub(super) fn convert(error: sqlx::Error) -> Error {
    let (kind, message) = match &error {
        sqlx::Error::PoolTimedOut => (ErrorKind::Unavailable, "the database has no free connection; try again in a moment"),
        sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => (ErrorKind::Unavailable, "the database is being closed"),
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) => {
            (ErrorKind::Unavailable, "the database does not answer; try again in a moment")
        }
        sqlx::Error::Database(database) => match database.code().as_deref() {
            // SQLITE_FULL; PostgreSQL disk_full.
            Some("13" | "53100") => (ErrorKind::StorageFull, "the disk of the database is full"),
            // SQLITE_BUSY and its kind.
            Some("5" | "261" | "517" | "773") => {
                (ErrorKind::Unavailable, "the database is locked by another process; try again in a moment")
            }
            // PostgreSQL: connection exceptions, too many connections, shutting down, serialization failure, deadlock.
            Some(code) if code.starts_with("08") || matches!(code, "53300" | "57P01" | "57P02" | "57P03" | "40001" | "40P01") => {
                (ErrorKind::Unavailable, "the database does not answer; try again in a moment")
            }
            _ => return Error::internal(error),
        },
        _ => return Error::internal(error),
    };
    Error::new(kind, message).with_source(error)
}
