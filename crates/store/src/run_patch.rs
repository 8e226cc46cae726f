//! Changes of what describes a run: names, tags, properties, warnings. Its state is only changed in [`crate::transitions`].

use std::collections::BTreeMap;

use serde_json::Value;
use trainyard_core::{
    Error, ErrorKind, Result,
    ids::{EnvironmentHash, RunId, WorkspaceId},
    run::Ownership,
};

use crate::{
    db::{
        Conn, Sql,
        json::{self, encode_object, encode_texts, encode_value},
    },
    run_row,
    runs::{RunPatch, RunRecord, RunWarning},
    store::Store,
    writer::Lane,
};

impl Store {
    /// Merges `patch` into a run. NotFound; Conflict when a property, the parent or the target of a managed run would change;
    /// Invalid when the new parent does not exist or is below the run.
    pub async fn patch_run(&self, workspace: WorkspaceId, id: &RunId, patch: &RunPatch) -> Result<RunRecord> {
        let (run, patch) = (id.clone(), patch.clone());
        self.writer()
            .write(Lane::Run(id), move |conn| {
                Box::pin(async move {
                    let mut record = run_row::read_for_update(conn, workspace, &run).await?;
                    if let Some(parent) = &patch.parent {
                        adopt(conn, &mut record, parent).await?;
                    }
                    merge(&mut record, patch)?;
                    write_back(conn, &record).await?;
                    Ok(record)
                })
            })
            .await
    }

    /// Removes tags; one that is not there is fine. NotFound when there is no such run.
    pub async fn delete_run_tags(&self, workspace: WorkspaceId, id: &RunId, keys: &[String]) -> Result<RunRecord> {
        let keys = keys.to_vec();
        self.change_run(workspace, id, move |record| record.tags.retain(|key, _| !keys.contains(key))).await
    }

    /// Appends warnings that the run does not have yet. NotFound.
    pub async fn add_run_warnings(&self, workspace: WorkspaceId, id: &RunId, warnings: &[RunWarning]) -> Result<()> {
        let warnings = warnings.to_vec();
        let add = move |record: &mut RunRecord| {
            for warning in warnings {
                if !record.warnings.contains(&warning) {
                    record.warnings.push(warning);
                }
            }
        };
        self.change_run(workspace, id, add).await.map(|_| ())
    }

    /// Sets `error`, an `ErrorResponse` as in azureml-wire C.10. NotFound.
    pub async fn set_run_error(&self, workspace: WorkspaceId, id: &RunId, error: &Value) -> Result<()> {
        let error = error.clone();
        self.change_run(workspace, id, move |record| record.error = Some(error)).await.map(|_| ())
    }

    /// Notes the environment that a run uses. NotFound.
    pub async fn set_run_environment(&self, workspace: WorkspaceId, id: &RunId, hash: &EnvironmentHash) -> Result<()> {
        let hash = hash.clone();
        self.change_run(workspace, id, move |record| record.environment = Some(hash)).await.map(|_| ())
    }

    async fn change_run<F>(&self, workspace: WorkspaceId, id: &RunId, change: F) -> Result<RunRecord>
    where
        F: FnOnce(&mut RunRecord) + Send + 'static,
    {
        let run = id.clone();
        self.writer()
            .write(Lane::Run(id), move |conn| {
                Box::pin(async move {
                    let mut record = run_row::read_for_update(conn, workspace, &run).await?;
                    change(&mut record);
                    write_back(conn, &record).await?;
                    Ok(record)
                })
            })
            .await
    }
}

fn merge(record: &mut RunRecord, patch: RunPatch) -> Result<()> {
    if let Some(target) = patch.target {
        if record.ownership == Ownership::Managed && record.target.as_ref() != Some(&target) {
            let message = format!("the target of run `{}` is fixed: this server executes the run", record.id);
            return Err(Error::new(ErrorKind::Conflict, message).with_target("target"));
        }
        record.target = Some(target);
    }
    merge_properties(record, patch.properties)?;
    record.tags.extend(patch.tags);
    record.extra.extend(patch.extra);
    record.hidden = patch.hidden.unwrap_or(record.hidden);
    let texts = [
        (&mut record.name, patch.name),
        (&mut record.display_name, patch.display_name),
        (&mut record.description, patch.description),
        (&mut record.run_type, patch.run_type),
        (&mut record.script_name, patch.script_name),
        (&mut record.cancel_reason, patch.cancel_reason),
    ];
    for (place, text) in texts {
        if text.is_some() {
            *place = text;
        }
    }
    Ok(())
}

/// A property keeps the value that it was first written with (azureml-wire C.4).
fn merge_properties(record: &mut RunRecord, properties: BTreeMap<String, Option<String>>) -> Result<()> {
    for (key, value) in properties {
        match record.properties.get(&key) {
            None => {
                record.properties.insert(key, value);
            }
            Some(present) if *present == value => {}
            Some(_) => {
                let message = format!("property `{key}` of run `{}` has another value already; properties can not be changed", record.id);
                return Err(Error::new(ErrorKind::Conflict, message).with_target(format!("properties.{key}")));
            }
        }
    }
    Ok(())
}

/// Makes the run a child, and its whole tree part of the parent's.
async fn adopt(conn: &mut Conn, record: &mut RunRecord, parent: &RunId) -> Result<()> {
    if record.parent.as_ref() == Some(parent) {
        return Ok(());
    }
    if let Some(present) = &record.parent {
        let message = format!("run `{}` is a child of run `{present}` already", record.id);
        return Err(Error::new(ErrorKind::Conflict, message).with_target("parentRunId"));
    }
    let workspace = record.workspace.to_string();
    let read = Sql::new("select root from runs where workspace = $1 and id = $2").bind(workspace.as_str()).bind(parent.as_str());
    let root = match conn.fetch_optional(read).await? {
        Some(row) => row.columns().parse::<RunId>()?,
        None => return Err(Error::invalid(format!("the parent run `{parent}` was not found in this workspace")).with_target("parentRunId")),
    };
    if root == record.id {
        let message = format!("run `{parent}` is below run `{}` and can not become its parent", record.id);
        return Err(Error::invalid(message).with_target("parentRunId"));
    }
    let update = Sql::new("update runs set root = $3 where workspace = $1 and root = $2");
    conn.execute(update.bind(workspace.as_str()).bind(record.id.as_str()).bind(root.as_str())).await?;
    record.parent = Some(parent.clone());
    record.root = root;
    Ok(())
}

async fn write_back(conn: &mut Conn, record: &RunRecord) -> Result<()> {
    let sql = Sql::new(
        "update runs set name = $3, display_name = $4, description = $5, run_type = $6, script_name = $7, cancel_reason = $8, \
         hidden = $9, target = $10, parent = $11, properties = $12, tags = $13, extra = $14, warnings = $15, error = $16, \
         environment = $17 where workspace = $1 and id = $2",
    )
    .bind(record.workspace.to_string())
    .bind(record.id.as_str())
    .bind(record.name.as_deref())
    .bind(record.display_name.as_deref())
    .bind(record.description.as_deref())
    .bind(record.run_type.as_deref())
    .bind(record.script_name.as_deref())
    .bind(record.cancel_reason.as_deref())
    .bind(record.hidden)
    .bind(record.target.as_deref())
    .bind(record.parent.as_ref().map(RunId::as_str))
    .bind(encode_texts(&record.properties, "properties")?)
    .bind(encode_texts(&record.tags, "tags")?)
    .bind(encode_object(&record.extra, "the run's other fields")?)
    .bind(json::encode(&record.warnings)?)
    .bind(record.error.as_ref().map(|error| encode_value(error, "error")).transpose()?)
    .bind(record.environment.as_ref().map(EnvironmentHash::as_str));
    conn.execute(sql).await.map(|_| ())
}
