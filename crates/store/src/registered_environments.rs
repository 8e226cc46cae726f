//! Environments under names: what clients registered in a workspace, in versions that never change.
//!
//! A document that equals the latest version of its name is that version; anything else is the next one. What a document means is for
//! others; here it is only compared. Invariant: a document holds no password, and a sealed one is only ever handed on.

use serde_json::Value;
use trainyard_core::{Error, ErrorKind, Result, ids::WorkspaceId};

use crate::{
    db::{Conn, Row, Sql, json::encode, json::encode_value},
    page::{self, Page, PageRequest},
    store::Store,
    writer::Lane,
};

/// How many names (or versions of one) an error may choose from.
const NAMES: i64 = 1000;

/// A version of a registered environment.
#[derive(Clone, PartialEq)]
pub struct RegisteredEnvironment {
    /// Its workspace.
    pub workspace: WorkspaceId,
    /// Its name; names are compared with case.
    pub name: String,
    /// Its version: `1`, `2`, … or a word that the client chose.
    pub version: String,
    /// The definition, without name, version and password.
    pub document: Value,
    /// The password of the image's registry, sealed.
    pub sealed_password: Option<String>,
    /// Its labels.
    pub labels: Vec<String>,
    /// When it was registered, microseconds since the epoch.
    pub created_us: i64,
    /// By whom, for people.
    pub created_by: String,
}

impl std::fmt::Debug for RegisteredEnvironment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegisteredEnvironment")
            .field("workspace", &self.workspace)
            .field("name", &self.name)
            .field("version", &self.version)
            .field("labels", &self.labels)
            .finish_non_exhaustive()
    }
}

/// What is to be registered.
#[derive(Clone)]
pub struct NewEnvironment {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// The name.
    pub name: String,
    /// The version; `None`: the latest if the document equals it, else the next number.
    pub version: Option<String>,
    /// The definition, without name, version and password.
    pub document: Value,
    /// The password of the image's registry, sealed. It does not make a version another one: it replaces the one that is stored.
    pub sealed_password: Option<String>,
    /// Now, microseconds since the epoch.
    pub created_us: i64,
    /// By whom, for people.
    pub created_by: String,
}

/// Which version of a name is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which<'a> {
    /// The one that was registered last.
    Latest,
    /// The one of this version.
    Version(&'a str),
    /// The one with this label.
    Label(&'a str),
}

macro_rules! select {
    () => {
        "select r.workspace, r.name, r.version, r.document, r.sealed_password, r.labels, r.created_us, r.created_by from registered_environments r"
    };
}

impl Store {
    /// Registers a document; the version that it is now. Conflict when the version asked for is another document.
    pub async fn register_environment(&self, new: NewEnvironment) -> Result<RegisteredEnvironment> {
        self.writer().write(Lane::Shared, move |conn| Box::pin(register(conn, new))).await
    }

    /// A version of a name.
    pub async fn registered_environment(
        &self,
        workspace: WorkspaceId,
        name: &str,
        which: Which<'_>,
    ) -> Result<Option<RegisteredEnvironment>> {
        find(&mut self.reader().await?, workspace, name, which).await
    }

    /// The latest version of each name, by name.
    pub async fn list_registered_environments(&self, workspace: WorkspaceId, page: &PageRequest) -> Result<Page<RegisteredEnvironment>> {
        let identity = format!("registered/{workspace}");
        let after: Option<String> = page::after(page, &identity)?;
        let mut sql = Sql::new(concat!(
            select!(),
            " where r.workspace = $1 and r.seq = \
             (select max(m.seq) from registered_environments m where m.workspace = r.workspace and m.name = r.name)"
        ))
        .bind(workspace.to_string());
        if let Some(name) = after {
            sql.push(" and r.name > ").push_value(name);
        }
        sql.push(" order by r.name").push_limit(page.limit() as i64 + 1);
        let found = self.reader().await?.fetch_all(sql).await?.iter().map(decode).collect::<Result<Vec<_>>>()?;
        page::page(found, page, &identity, |environment| environment.name.clone())
    }

    /// The versions of a name with their definitions, the one that was registered last first.
    pub async fn list_versions_of_environment(
        &self,
        workspace: WorkspaceId,
        name: &str,
        page: &PageRequest,
    ) -> Result<Page<RegisteredEnvironment>> {
        let identity = format!("versions/{workspace}/{name}");
        // What was registered meanwhile is before the first page, so counting what was shown would show some twice.
        let after: Option<String> = page::after(page, &identity)?;
        let mut sql = Sql::new(concat!(select!(), " where r.workspace = $1 and r.name = $2")).bind(workspace.to_string()).bind(name);
        if let Some(version) = after {
            sql.push(" and r.seq < (select a.seq from registered_environments a where a.workspace = r.workspace and a.name = r.name and a.version = ");
            sql.push_value(version).push(")");
        }
        sql.push(" order by r.seq desc").push_limit(page.limit() as i64 + 1);
        let found = self.reader().await?.fetch_all(sql).await?.iter().map(decode).collect::<Result<Vec<_>>>()?;
        page::page(found, page, &identity, |environment| environment.version.clone())
    }

    /// The names in a workspace, as many as an error may choose from.
    pub async fn registered_environment_names(&self, workspace: WorkspaceId) -> Result<Vec<String>> {
        let sql = Sql::new("select distinct name from registered_environments where workspace = $1 order by name limit ($2 + 0)")
            .bind(workspace.to_string())
            .bind(NAMES);
        self.reader().await?.fetch_all(sql).await?.iter().map(|row| row.columns().text()).collect()
    }

    /// The versions of a name, latest first, as many as an error may choose from.
    pub async fn registered_environment_versions(&self, workspace: WorkspaceId, name: &str) -> Result<Vec<String>> {
        let sql =
            Sql::new("select version from registered_environments where workspace = $1 and name = $2 order by seq desc limit ($3 + 0)")
                .bind(workspace.to_string())
                .bind(name)
                .bind(NAMES);
        self.reader().await?.fetch_all(sql).await?.iter().map(|row| row.columns().text()).collect()
    }

    /// Gives a version exactly these labels and takes them from the other versions of the name. NotFound.
    pub async fn label_environment(&self, workspace: WorkspaceId, name: &str, version: &str, labels: &[String]) -> Result<()> {
        let (name, version, labels) = (name.to_owned(), version.to_owned(), labels.to_vec());
        self.writer().write(Lane::Shared, move |conn| Box::pin(label(conn, workspace, (name, version), labels))).await
    }
}

async fn find(conn: &mut Conn, workspace: WorkspaceId, name: &str, which: Which<'_>) -> Result<Option<RegisteredEnvironment>> {
    let one = |text| Sql::new(text).bind(workspace.to_string()).bind(name);
    let sql = match which {
        Which::Latest => one(concat!(select!(), " where r.workspace = $1 and r.name = $2 order by r.seq desc limit 1")),
        Which::Version(version) => one(concat!(select!(), " where r.workspace = $1 and r.name = $2 and r.version = $3")).bind(version),
        Which::Label(label) => {
            let versions = all(conn, workspace, name).await?;
            return Ok(versions.into_iter().find(|version| version.labels.iter().any(|known| known == label)));
        }
    };
    conn.fetch_optional(sql).await?.as_ref().map(decode).transpose()
}

/// Every version of a name, latest first.
async fn all(conn: &mut Conn, workspace: WorkspaceId, name: &str) -> Result<Vec<RegisteredEnvironment>> {
    let sql = Sql::new(concat!(select!(), " where r.workspace = $1 and r.name = $2 order by r.seq desc"));
    conn.fetch_all(sql.bind(workspace.to_string()).bind(name)).await?.iter().map(decode).collect()
}

async fn register(conn: &mut Conn, new: NewEnvironment) -> Result<RegisteredEnvironment> {
    let present = match &new.version {
        Some(version) => find(conn, new.workspace, &new.name, Which::Version(version)).await?,
        None => find(conn, new.workspace, &new.name, Which::Latest).await?.filter(|latest| latest.document == new.document),
    };
    match present {
        Some(present) if present.document == new.document => keep(conn, present, new.sealed_password).await,
        Some(present) => Err(Error::new(
            ErrorKind::Conflict,
            format!(
                "version `{}` of environment `{}` is registered with another definition, and a version never changes: leave the version out \
                 and the next one is made",
                present.version, present.name
            ),
        )
        .with_target("version")),
        None => insert(conn, new).await,
    }
}

/// The version as it is, with the password that came last.
async fn keep(conn: &mut Conn, mut present: RegisteredEnvironment, sealed: Option<String>) -> Result<RegisteredEnvironment> {
    if let Some(sealed) = sealed {
        let sql = Sql::new("update registered_environments set sealed_password = $4 where workspace = $1 and name = $2 and version = $3");
        let sql = sql.bind(present.workspace.to_string()).bind(present.name.as_str()).bind(present.version.as_str());
        conn.execute(sql.bind(sealed.as_str())).await?;
        present.sealed_password = Some(sealed);
    }
    Ok(present)
}

async fn insert(conn: &mut Conn, new: NewEnvironment) -> Result<RegisteredEnvironment> {
    let sql = Sql::new("select version, seq from registered_environments where workspace = $1 and name = $2");
    let rows = conn.fetch_all(sql.bind(new.workspace.to_string()).bind(new.name.as_str())).await?;
    let (mut seq, mut number) = (0, 0_u64);
    for row in &rows {
        let mut row = row.columns();
        number = number.max(row.text()?.parse::<u32>().map_or(0, u64::from));
        seq = seq.max(row.int()?);
    }
    let version = new.version.unwrap_or_else(|| (number + 1).to_string());
    let sql = Sql::new(
        "insert into registered_environments (workspace, name, version, seq, document, sealed_password, labels, created_us, created_by) \
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(new.workspace.to_string())
    .bind(new.name.as_str())
    .bind(version.as_str())
    .bind(seq + 1)
    .bind(encode_value(&new.document, "the definition of an environment")?)
    .bind(new.sealed_password.as_deref())
    .bind("[]")
    .bind(new.created_us)
    .bind(new.created_by.as_str());
    conn.execute(sql).await?;
    Ok(RegisteredEnvironment {
        workspace: new.workspace,
        name: new.name,
        version,
        document: new.document,
        sealed_password: new.sealed_password,
        labels: Vec::new(),
        created_us: new.created_us,
        created_by: new.created_by,
    })
}

async fn label(conn: &mut Conn, workspace: WorkspaceId, (name, version): (String, String), labels: Vec<String>) -> Result<()> {
    let versions = all(conn, workspace, &name).await?;
    if !versions.iter().any(|known| known.version == version) {
        return Err(Error::not_found(format!("environment `{name}` has no version `{version}`")));
    }
    for known in versions {
        let wanted = if known.version == version {
            labels.clone()
        } else {
            known.labels.iter().filter(|label| !labels.contains(label)).cloned().collect()
        };
        if wanted != known.labels {
            let sql = Sql::new("update registered_environments set labels = $4 where workspace = $1 and name = $2 and version = $3");
            let sql = sql.bind(workspace.to_string()).bind(name.as_str()).bind(known.version.as_str()).bind(encode(&wanted)?);
            conn.execute(sql).await?;
        }
    }
    Ok(())
}

fn decode(row: &Row) -> Result<RegisteredEnvironment> {
    let mut row = row.columns();
    Ok(RegisteredEnvironment {
        workspace: row.parse()?,
        name: row.text()?,
        version: row.text()?,
        document: row.json()?,
        sealed_password: row.opt_text()?,
        labels: row.json()?,
        created_us: row.int()?,
        created_by: row.text()?,
    })
}
