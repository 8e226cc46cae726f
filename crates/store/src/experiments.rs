//! Experiments: named groups of runs (azureml-wire C.2).

use std::collections::BTreeMap;

use trainyard_core::{
    Error, ErrorKind, Result,
    ids::{ExperimentId, ExperimentName, RunId, WorkspaceId},
};

use crate::{
    db::{Conn, Row, Sql, json::encode_texts},
    page::{self, Page, PageRequest},
    store::Store,
    writer::Lane,
};

/// An experiment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Experiment {
    /// Its id.
    pub id: ExperimentId,
    /// Its workspace.
    pub workspace: WorkspaceId,
    /// Its name, unique in the workspace.
    pub name: ExperimentName,
    /// For people.
    pub description: Option<String>,
    /// Tags; a tag may have no value.
    pub tags: BTreeMap<String, Option<String>>,
    /// When it was made, microseconds since the epoch.
    pub created_us: i64,
    /// When it was archived, if it is.
    pub archived_us: Option<i64>,
    /// Its youngest run.
    pub latest_run_id: Option<RunId>,
    /// When that run was made.
    pub latest_run_created_us: Option<i64>,
}

/// Which experiments a list shows (`viewType`, azureml-wire C.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum View {
    /// Those that are not archived.
    #[default]
    ActiveOnly,
    /// Those that are.
    ArchivedOnly,
    /// All.
    All,
}

/// A condition on an experiment's name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum NameFilter {
    /// This name.
    Equals(String),
    /// Names that start so.
    StartsWith(String),
    /// Names that hold this.
    Contains(String),
}

/// A list of experiments, newest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExperimentQuery {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// Archived or not.
    pub view: View,
    /// Only these names.
    pub name_filter: Option<NameFilter>,
    /// Which page.
    pub page: PageRequest,
}

/// What changes of an experiment; `None` keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExperimentPatch {
    /// A new name.
    pub name: Option<ExperimentName>,
    /// A new description.
    pub description: Option<String>,
    /// Tags to set; others stay.
    pub tags: BTreeMap<String, Option<String>>,
    /// Archive or reactivate.
    pub archive: Option<bool>,
    /// Now, microseconds since the epoch.
    pub at_us: i64,
}

macro_rules! select {
    () => {
        "select r.id, r.workspace, r.name, r.description, r.tags, r.created_us, r.archived_us, r.latest_run_id, r.latest_run_created_us \
         from experiments r"
    };
}

impl Store {
    /// The experiment with that name in that workspace, made from `experiment` if there is none. However many callers do so at
    /// once, there is one experiment and all get it.
    pub async fn create_or_get_experiment(&self, experiment: &Experiment) -> Result<Experiment> {
        if let Some(found) = self.experiment_by_name(experiment.workspace, &experiment.name).await? {
            return Ok(found);
        }
        let experiment = experiment.clone();
        self.writer().write(Lane::Shared, move |conn| Box::pin(create_or_get(conn, experiment))).await
    }

    /// The experiment with a name.
    pub async fn experiment_by_name(&self, workspace: WorkspaceId, name: &ExperimentName) -> Result<Option<Experiment>> {
        by_name(&mut self.reader().await?, workspace, name).await
    }

    /// The experiment with an id.
    pub async fn experiment(&self, workspace: WorkspaceId, id: ExperimentId) -> Result<Option<Experiment>> {
        let sql = by_id(workspace, id);
        self.reader().await?.fetch_optional(sql).await?.as_ref().map(decode).transpose()
    }

    /// A page of experiments, newest first.
    pub async fn list_experiments(&self, query: &ExperimentQuery) -> Result<Page<Experiment>> {
        let identity = format!("{}/{:?}/{:?}", query.workspace, query.view, query.name_filter);
        let after: Option<(i64, ExperimentId)> = page::after(&query.page, &identity)?;
        let mut sql = Sql::new(concat!(select!(), " where r.workspace = $1")).bind(query.workspace.to_string());
        match query.view {
            View::ActiveOnly => sql.push(" and r.archived_us is null"),
            View::ArchivedOnly => sql.push(" and r.archived_us is not null"),
            View::All => &mut sql,
        };
        match &query.name_filter {
            None => &mut sql,
            Some(NameFilter::Equals(name)) => sql.push(" and r.name = ").push_value(name.as_str()),
            Some(NameFilter::StartsWith(start)) => {
                let (first, end) = (start.as_str(), start.as_str());
                sql.push(" and substr(r.name, 1, length(").push_value(first).push(")) = ").push_value(end)
            }
            Some(NameFilter::Contains(part)) => {
                sql.push(" and ").push(self.dialect().position()).push("(r.name, ").push_value(part.as_str()).push(") > 0")
            }
        };
        if let Some((created_us, id)) = after {
            sql.push(" and (r.created_us, r.id) < (").push_value(created_us).push(", ").push_value(id.to_string()).push(")");
        }
        sql.push(" order by r.created_us desc, r.id desc").push_limit(query.page.limit() as i64 + 1);
        let found = self.reader().await?.fetch_all(sql).await?;
        let found = found.iter().map(decode).collect::<Result<Vec<_>>>()?;
        page::page(found, &query.page, &identity, |experiment| (experiment.created_us, experiment.id))
    }

    /// Changes an experiment. NotFound; AlreadyExists when the new name is taken.
    pub async fn patch_experiment(&self, workspace: WorkspaceId, id: ExperimentId, patch: &ExperimentPatch) -> Result<Experiment> {
        let patch = patch.clone();
        self.change_experiment(workspace, id, move |experiment| {
            if let Some(name) = patch.name {
                experiment.name = name;
            }
            if patch.description.is_some() {
                experiment.description = patch.description;
            }
            experiment.tags.extend(patch.tags);
            match patch.archive {
                Some(true) => experiment.archived_us = experiment.archived_us.or(Some(patch.at_us)),
                Some(false) => experiment.archived_us = None,
                None => {}
            }
        })
        .await
    }

    /// Removes tags; one that is not there is fine. NotFound when there is no such experiment.
    pub async fn delete_experiment_tags(&self, workspace: WorkspaceId, id: ExperimentId, keys: &[String]) -> Result<Experiment> {
        let keys = keys.to_vec();
        self.change_experiment(workspace, id, move |experiment| experiment.tags.retain(|key, _| !keys.contains(key))).await
    }

    /// Removes an experiment. NotFound; Conflict while it has runs.
    pub async fn delete_experiment(&self, workspace: WorkspaceId, id: ExperimentId) -> Result<()> {
        self.writer().write(Lane::Shared, move |conn| Box::pin(delete(conn, workspace, id))).await
    }

    async fn change_experiment<F>(&self, workspace: WorkspaceId, id: ExperimentId, change: F) -> Result<Experiment>
    where
        F: FnOnce(&mut Experiment) + Send + 'static,
    {
        self.writer()
            .write(Lane::Shared, move |conn| {
                Box::pin(async move {
                    let mut experiment = read_for_update(conn, workspace, id).await?;
                    change(&mut experiment);
                    write_back(conn, &experiment).await?;
                    Ok(experiment)
                })
            })
            .await
    }
}

async fn create_or_get(conn: &mut Conn, experiment: Experiment) -> Result<Experiment> {
    let sql = Sql::new(
        "insert into experiments (workspace, id, name, description, tags, created_us, archived_us, last_number) \
         values ($1, $2, $3, $4, $5, $6, $7, 0) on conflict (workspace, name) do nothing",
    )
    .bind(experiment.workspace.to_string())
    .bind(experiment.id.to_string())
    .bind(experiment.name.as_str())
    .bind(experiment.description.as_deref())
    .bind(encode_texts(&experiment.tags, "tags")?)
    .bind(experiment.created_us)
    .bind(experiment.archived_us);
    conn.execute(sql).await?;
    by_name(conn, experiment.workspace, &experiment.name)
        .await?
        .ok_or_else(|| Error::new(ErrorKind::Conflict, format!("experiment `{}` was removed while it was made", experiment.name)))
}

async fn by_name(conn: &mut Conn, workspace: WorkspaceId, name: &ExperimentName) -> Result<Option<Experiment>> {
    let sql = Sql::new(concat!(select!(), " where r.workspace = $1 and r.name = $2")).bind(workspace.to_string()).bind(name.as_str());
    conn.fetch_optional(sql).await?.as_ref().map(decode).transpose()
}

fn by_id(workspace: WorkspaceId, id: ExperimentId) -> Sql {
    Sql::new(concat!(select!(), " where r.workspace = $1 and r.id = $2")).bind(workspace.to_string()).bind(id.to_string())
}

async fn read_for_update(conn: &mut Conn, workspace: WorkspaceId, id: ExperimentId) -> Result<Experiment> {
    let mut sql = by_id(workspace, id);
    sql.push(conn.dialect().for_update());
    let row = conn.fetch_optional(sql).await?.ok_or_else(|| not_found(id))?;
    decode(&row)
}

/// Writes everything but the counters, which only new runs change.
async fn write_back(conn: &mut Conn, experiment: &Experiment) -> Result<()> {
    let (workspace, id) = (experiment.workspace.to_string(), experiment.id.to_string());
    let taken = Sql::new("select 1 from experiments where workspace = $1 and name = $2 and id <> $3")
        .bind(workspace.as_str())
        .bind(experiment.name.as_str())
        .bind(id.as_str());
    if conn.fetch_optional(taken).await?.is_some() {
        let message = format!("an experiment named `{}` exists already in this workspace", experiment.name);
        return Err(Error::new(ErrorKind::AlreadyExists, message).with_target("name"));
    }
    let sql = Sql::new("update experiments set name = $3, description = $4, tags = $5, archived_us = $6 where workspace = $1 and id = $2")
        .bind(workspace)
        .bind(id)
        .bind(experiment.name.as_str())
        .bind(experiment.description.as_deref())
        .bind(encode_texts(&experiment.tags, "tags")?)
        .bind(experiment.archived_us);
    conn.execute(sql).await.map(|_| ())
}

async fn delete(conn: &mut Conn, workspace: WorkspaceId, id: ExperimentId) -> Result<()> {
    let experiment = read_for_update(conn, workspace, id).await?;
    let count = Sql::new("select count(*) from runs where workspace = $1 and experiment = $2");
    let row = conn.fetch_optional(count.bind(workspace.to_string()).bind(id.to_string())).await?;
    let runs = row.ok_or_else(|| Error::internal("a count gave no row"))?.columns().int()?;
    if runs > 0 {
        let (name, runs) = (&experiment.name, if runs == 1 { "1 run".to_owned() } else { format!("{runs} runs") });
        return Err(Error::new(ErrorKind::Conflict, format!("experiment `{name}` has {runs} and can not be deleted; archive it instead")));
    }
    let sql = Sql::new("delete from experiments where workspace = $1 and id = $2");
    conn.execute(sql.bind(workspace.to_string()).bind(id.to_string())).await.map(|_| ())
}

fn not_found(id: ExperimentId) -> Error {
    Error::not_found(format!("experiment {id} was not found in this workspace"))
}

fn decode(row: &Row) -> Result<Experiment> {
    let mut row = row.columns();
    Ok(Experiment {
        id: row.parse()?,
        workspace: row.parse()?,
        name: row.parse()?,
        description: row.opt_text()?,
        tags: row.json()?,
        created_us: row.int()?,
        archived_us: row.opt_int()?,
        latest_run_id: row.opt_parse()?,
        latest_run_created_us: row.opt_int()?,
    })
}
