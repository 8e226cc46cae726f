//! Artifacts: the files kept with a run, by container and path (azureml-wire C.9).

use trainyard_core::{
    Result,
    ids::{Digest, WorkspaceId},
};

use crate::{
    db::{Row, Sql},
    page::{self, Page, PageRequest},
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
    /// When it was first seen, microseconds since the epoch.
    pub created_us: i64,
    /// When it last changed.
    pub updated_us: i64,
}

macro_rules! select {
    () => {
        "select workspace, container, path, size_bytes, digest, created_us, updated_us from artifacts"
    };
}

impl Store {
    /// Stores an artifact, or replaces what is known of it apart from `created_us`.
    pub async fn upsert_artifact(&self, artifact: &Artifact) -> Result<()> {
        let sql = Sql::new(
            "insert into artifacts (workspace, container, path, size_bytes, digest, created_us, updated_us) \
             values ($1, $2, $3, $4, $5, $6, $7) on conflict (workspace, container, path) do update set \
             size_bytes = excluded.size_bytes, digest = excluded.digest, updated_us = excluded.updated_us",
        )
        .bind(artifact.workspace.to_string())
        .bind(artifact.container.as_str())
        .bind(artifact.path.as_str())
        .bind(artifact.size_bytes)
        .bind(artifact.digest.as_ref().map(Digest::as_str))
        .bind(artifact.created_us)
        .bind(artifact.updated_us);
        self.writer().write(Lane::Shared, move |conn| Box::pin(conn.execute(sql))).await.map(|_| ())
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
        sql.push(" order by path limit ").push_value(page.limit() as i64 + 1);
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

fn decode(row: &Row) -> Result<Artifact> {
    let mut row = row.columns();
    Ok(Artifact {
        workspace: row.parse()?,
        container: row.text()?,
        path: row.text()?,
        size_bytes: row.int()?,
        digest: row.opt_parse()?,
        created_us: row.int()?,
        updated_us: row.int()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_the_next_text_that_does_not_start_with_it() {
        assert_eq!(after_prefix(""), None);
        assert_eq!(after_prefix("logs/").as_deref(), Some("logs0"));
        assert_eq!(after_prefix("a\u{D7FF}").as_deref(), Some("a\u{E000}"));
        assert_eq!(after_prefix("a\u{10FFFF}").as_deref(), Some("b"));
        assert_eq!(after_prefix("\u{10FFFF}"), None);
    }
}
