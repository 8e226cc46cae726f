//! Artifacts: the files kept with a run, by container and path (azureml-wire C.9).

use trainyard_core::{
    Error, ErrorKind, Result,
    ids::{AttemptId, Digest, RunId, WorkspaceId},
};

use crate::{
    db::{Conn, Row, Sql},
    page::{self, Page, PageRequest},
    runs::RunRecord,
    store::Store,
    writer::Lane,
};

/// A file kept with a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artifact {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// The container, `dcid.{runId}` for a run's own.
    pub container: String,
    /// The path in the container, e.g. `outputs/model.pkl`.
    pub path: String,
    /// Size, as far as known.
    pub size_bytes: i64,
    /// The blob with its content; `None` while it is still a live file.
    pub digest: Option<Digest>,
    /// The attempt whose agent wrote it; `None`: a client did.
    pub attempt: Option<AttemptId>,
    /// When it was first seen, microseconds since the epoch.
    pub created_us: i64,
    /// When it last changed.
    pub updated_us: i64,
}

impl Artifact {
    /// The run whose own container it is in.
    pub fn run(&self) -> Option<RunId> {
        self.container.strip_prefix("dcid.").and_then(|run| RunId::new(run).ok())
    }
}

/// What both ways to store an artifact do when there is one at the path already.
macro_rules! or_replace {
    () => {
        " on conflict (workspace, container, path) do update set size_bytes = excluded.size_bytes, digest = excluded.digest, \
         attempt = excluded.attempt, updated_us = excluded.updated_us"
    };
}

const UPSERT: &str = concat!(
    "insert into artifacts (workspace, container, path, size_bytes, digest, attempt, created_us, updated_us) \
     values ($1, $2, $3, $4, $5, $6, $7, $8)",
    or_replace!()
);

/// The same, if the attempt is the live one of run $9.
const UPSERT_IF_LIVE: &str = concat!(
    "insert into artifacts (workspace, container, path, size_bytes, digest, attempt, created_us, updated_us) \
     select $1, $2, $3, $4, $5, $6, $7, $8 where exists (select 1 from runs where workspace = $1 and id = $9 and attempt = $6)",
    or_replace!()
);

/// Moves what an attempt wrote to `attempts/{its number}/…`: the next attempt of the run writes to the plain paths again.
pub(crate) async fn set_aside(conn: &mut Conn, record: &RunRecord, attempt: AttemptId) -> Result<()> {
    let number = Sql::new("select number from attempts where id = $1").bind(attempt.to_string());
    let Some(row) = conn.fetch_optional(number).await? else {
        return Err(Error::internal(format!("attempt {attempt} of run {} has no row", record.id)));
    };
    let folder = format!("attempts/{}/", row.columns().int()?);
    let container = format!("dcid.{}", record.id);
    // A client may have put a file of its own there.
    for text in [
        "delete from artifacts where workspace = $1 and container = $2 and path in \
         (select $4 || a.path from artifacts a where a.workspace = $1 and a.container = $2 and a.attempt = $3)",
        "update artifacts set path = $4 || path where workspace = $1 and container = $2 and attempt = $3",
    ] {
        let sql = Sql::new(text).bind(record.workspace.to_string()).bind(container.as_str());
        conn.execute(sql.bind(attempt.to_string()).bind(folder.as_str())).await?;
    }
    Ok(())
}

macro_rules! select {
    () => {
        "select workspace, container, path, size_bytes, digest, attempt, created_us, updated_us from artifacts"
    };
}

impl Store {
    /// Stores an artifact, or replaces what is known of it apart from `created_us`.
    ///
    /// [`ErrorKind::Forbidden`] when it is from an attempt that is not its run's live one (any more): an attempt that was given up writes nothing.
    pub async fn upsert_artifact(&self, artifact: &Artifact) -> Result<()> {
        let sql = Sql::new(if artifact.attempt.is_some() { UPSERT_IF_LIVE } else { UPSERT })
            .bind(artifact.workspace.to_string())
            .bind(artifact.container.as_str())
            .bind(artifact.path.as_str())
            .bind(artifact.size_bytes)
            .bind(artifact.digest.as_ref().map(Digest::as_str))
            .bind(artifact.attempt.map(|attempt| attempt.to_string()))
            .bind(artifact.created_us)
            .bind(artifact.updated_us);
        let stored = match (artifact.attempt, artifact.run()) {
            (None, _) => self.writer().write(Lane::Shared, move |conn| Box::pin(conn.execute(sql))).await?,
            // In the queue of the run's own changes, so that a fence stands between what came before and after it.
            (Some(_), Some(run)) => {
                let sql = sql.bind(run.as_str());
                self.writer().write(Lane::Run(&run), move |conn| Box::pin(conn.execute(sql))).await?
            }
            (Some(_), None) => return Err(Error::internal("an attempt writes to its run's own container only")),
        };
        if stored > 0 {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Forbidden, "this attempt is not the run's live one any more; it must stop and write nothing"))
    }

    /// The artifact at a path.
    pub async fn artifact(&self, workspace: WorkspaceId, container: &str, path: &str) -> Result<Option<Artifact>> {
        let sql = Sql::new(concat!(select!(), " where workspace = $1 and container = $2 and path = $3"));
        let sql = sql.bind(workspace.to_string()).bind(container).bind(path);
        self.reader().await?.fetch_optional(sql).await?.as_ref().map(decode).transpose()
    }

    /// A page of the artifacts whose path starts with `prefix` (empty: all), ordered by the bytes of the path.
    pub async fn list_artifacts(
        &self,
        workspace: WorkspaceId,
        container: &str,
        prefix: &str,
        page: &PageRequest,
    ) -> Result<Page<Artifact>> {
        let identity = format!("{workspace}/{container}/{prefix}");
        let after: Option<String> = page::after(page, &identity)?;
        let mut sql = Sql::new(concat!(select!(), " where workspace = $1 and container = $2")).bind(workspace.to_string()).bind(container);
        match after {
            Some(after) => sql.push(" and path > ").push_value(after),
            None => sql.push(" and path >= ").push_value(prefix),
        };
        if let Some(end) = after_prefix(prefix) {
            sql.push(" and path < ").push_value(end);
        }
        sql.push(" order by path").push_limit(page.limit() as i64 + 1);
        let found = self.reader().await?.fetch_all(sql).await?.iter().map(decode).collect::<Result<Vec<_>>>()?;
        page::page(found, page, &identity, |artifact| artifact.path.clone())
    }
}

/// The first text, in the order of bytes, after all that start with `prefix`; `None` when nothing is.
fn after_prefix(prefix: &str) -> Option<String> {
    let mut end: Vec<char> = prefix.chars().collect();
    while let Some(last) = end.pop() {
        // The order of code points is the order of their UTF-8 bytes; U+D800 to U+DFFF are no characters.
        let next = if last == '\u{D7FF}' { Some('\u{E000}') } else { char::from_u32(last as u32 + 1) };
        if let Some(next) = next {
            end.push(next);
            return Some(end.into_iter().collect());
        }
    }
    None
}

/// At most `limit` artifacts of all containers after one of them, in the order of the primary key.
pub(crate) async fn after(conn: &mut Conn, after: Option<&Artifact>, limit: i64) -> Result<Vec<Artifact>> {
    let mut sql = Sql::new(select!());
    if let Some(after) = after {
        let key = [after.workspace.to_string(), after.container.clone(), after.path.clone()];
        sql.push(" where (workspace, container, path) > ").push_row(key.map(Into::into));
    }
    sql.push(" order by workspace, container, path").push_limit(limit);
    conn.fetch_all(sql).await?.iter().map(decode).collect()
}

fn decode(row: &Row) -> Result<Artifact> {
    let mut row = row.columns();
    Ok(Artifact {
        workspace: row.parse()?,
        container: row.text()?,
        path: row.text()?,
        size_bytes: row.int()?,
        digest: row.opt_parse()?,
        attempt: row.opt_parse()?,
        created_us: row.int()?,
        updated_us: row.int()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_containers_of_runs_name_a_run() {
        let run = |container: &str| {
            let workspace = WorkspaceId(uuid::Uuid::nil());
            let (container, path) = (container.to_owned(), "x".to_owned());
            Artifact { workspace, container, path, size_bytes: 0, digest: None, attempt: None, created_us: 0, updated_us: 0 }.run()
        };
        assert_eq!(run("dcid.hello_1").unwrap().as_str(), "hello_1");
        for other in ["hello_1", "dcid.", "dcid.a/b", "DCID.hello_1"] {
            assert_eq!(run(other), None, "{other}");
        }
    }

    #[test]
    fn the_end_of_a_prefix_is_the_next_text_that_does_not_start_with_it() {
        assert_eq!(after_prefix(""), None);
        assert_eq!(after_prefix("logs/").as_deref(), Some("logs0"));
        assert_eq!(after_prefix("a\u{D7FF}").as_deref(), Some("a\u{E000}"));
        assert_eq!(after_prefix("a\u{10FFFF}").as_deref(), Some("b"));
        assert_eq!(after_prefix("\u{10FFFF}"), None);
    }
}
