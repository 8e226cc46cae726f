//! Workspaces: the scope of everything else. Names are compared without case, as Azure Resource Manager does.

use trainyard_core::{
    Error, ErrorKind, Result,
    ids::{WorkspaceId, WorkspacePath},
};

use crate::{
    db::{Conn, Row, Sql},
    store::Store,
    writer::Lane,
};

/// A workspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workspace {
    /// Its id.
    pub id: WorkspaceId,
    /// Subscription, resource group and name, as first written.
    pub path: WorkspacePath,
    /// The region in its addresses, e.g. `westeurope`.
    pub region: String,
    /// When it was made, microseconds since the epoch.
    pub created_us: i64,
}

macro_rules! select {
    () => {
        "select id, subscription_id, resource_group, name, region, created_us from workspaces"
    };
}

impl Store {
    /// Stores a workspace. AlreadyExists when its id or, compared without case, its path is taken.
    pub async fn create_workspace(&self, workspace: &Workspace) -> Result<()> {
        let workspace = workspace.clone();
        let created = self.writer().write(Lane::Shared, move |conn| Box::pin(insert(conn, workspace))).await;
        self.cache().workspaces.clear();
        self.cache().workspaces_by_path.clear();
        created
    }

    /// The workspace at a path, compared without case. From memory once it was read.
    pub async fn workspace_by_path(&self, path: &WorkspacePath) -> Result<Option<Workspace>> {
        let key = path_key(path);
        let generation = match self.cache().workspaces_by_path.get(&key) {
            Ok(workspace) => return Ok(Some(workspace)),
            Err(generation) => generation,
        };
        let [subscription, group, name] = key.clone();
        let sql = Sql::new(concat!(select!(), " where subscription_key = $1 and group_key = $2 and name_key = $3"));
        let found = self.reader().await?.fetch_optional(sql.bind(subscription).bind(group).bind(name)).await?;
        let found = found.as_ref().map(decode).transpose()?;
        if let Some(workspace) = &found {
            self.cache().workspaces_by_path.fill(generation, key, workspace.clone());
        }
        Ok(found)
    }

    /// The workspace with an id. From memory once it was read.
    pub async fn workspace(&self, id: WorkspaceId) -> Result<Option<Workspace>> {
        let generation = match self.cache().workspaces.get(&id) {
            Ok(workspace) => return Ok(Some(workspace)),
            Err(generation) => generation,
        };
        let sql = Sql::new(concat!(select!(), " where id = $1")).bind(id.to_string());
        let found = self.reader().await?.fetch_optional(sql).await?.as_ref().map(decode).transpose()?;
        if let Some(workspace) = &found {
            self.cache().workspaces.fill(generation, id, workspace.clone());
        }
        Ok(found)
    }

    /// All workspaces, by path.
    pub async fn list_workspaces(&self) -> Result<Vec<Workspace>> {
        let sql = Sql::new(concat!(select!(), " order by subscription_key, group_key, name_key"));
        self.reader().await?.fetch_all(sql).await?.iter().map(decode).collect()
    }
}

async fn insert(conn: &mut Conn, workspace: Workspace) -> Result<()> {
    let [subscription, group, name] = path_key(&workspace.path);
    let path = &workspace.path;
    let sql = Sql::new(
        "insert into workspaces (id, subscription_id, resource_group, name, subscription_key, group_key, name_key, region, created_us) \
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9) on conflict do nothing",
    )
    .bind(workspace.id.to_string())
    .bind(path.subscription_id.as_str())
    .bind(path.resource_group.as_str())
    .bind(path.workspace_name.as_str())
    .bind(subscription)
    .bind(group)
    .bind(name)
    .bind(workspace.region.as_str())
    .bind(workspace.created_us);
    if conn.execute(sql).await? == 1 {
        return Ok(());
    }
    let (name, group, subscription) = (&path.workspace_name, &path.resource_group, &path.subscription_id);
    Err(Error::new(
        ErrorKind::AlreadyExists,
        format!("workspace `{name}` exists already in resource group `{group}` of subscription `{subscription}`"),
    ))
}

fn path_key(path: &WorkspacePath) -> [String; 3] {
    [path.subscription_id.to_lowercase(), path.resource_group.to_lowercase(), path.workspace_name.to_lowercase()]
}

fn decode(row: &Row) -> Result<Workspace> {
    let mut row = row.columns();
    Ok(Workspace {
        id: row.parse()?,
        path: WorkspacePath { subscription_id: row.text()?, resource_group: row.text()?, workspace_name: row.text()? },
        region: row.text()?,
        created_us: row.int()?,
    })
}
