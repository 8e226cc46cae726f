//! Snapshots: which blob holds the code of a run.

use trainyard_core::{
    Result,
    ids::{Digest, WorkspaceId},
};
use uuid::Uuid;

use crate::{
    db::{Row, Sql},
    store::Store,
};

/// Uploaded code, immutable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Its id on the wire.
    pub id: Uuid,
    /// The blob with the zip.
    pub digest: Digest,
    /// Size of the zip.
    pub size_bytes: i64,
    /// When it was first used, microseconds since the epoch.
    pub created_us: i64,
}

impl Store {
    /// The snapshot with an id. Rows are written with the runs that use them, see [`Store::create_run`].
    pub async fn snapshot(&self, workspace: WorkspaceId, id: Uuid) -> Result<Option<Snapshot>> {
        let sql = Sql::new("select id, digest, size_bytes, created_us from snapshots where workspace = $1 and id = $2")
            .bind(workspace.to_string())
            .bind(id.to_string());
        self.reader().await?.fetch_optional(sql).await?.as_ref().map(decode).transpose()
    }
}

fn decode(row: &Row) -> Result<Snapshot> {
    let mut row = row.columns();
    Ok(Snapshot { id: row.uuid()?, digest: row.parse()?, size_bytes: row.int()?, created_us: row.int()? })
}
