//! Writes the order of an attempt: everything its agent must know, made anew from the rows each time.

use std::collections::BTreeMap;

use serde_json::Value;
use trainyard_core::{
    Error, Result,
    container::{DEFAULT_REGISTRY, ImageSource, registry_of},
    definition::Definition,
    ids::{AttemptId, WorkspaceId},
};
use trainyard_store::{queue::LiveRun, runs::RunRecord};
use trainyard_wire::native::{AGENT_PROTOCOL, AttemptOrder, SINGLE_AGENT_PROTOCOL};

use super::Passes;
use crate::{
    container::{ContainerSettings, Login},
    engine::Target,
};

impl Passes {
    pub(super) async fn order(&self, live: &LiveRun, target: &Target) -> Result<AttemptOrder> {
        let store = &self.options.store;
        let settings = &self.options.orders;
        let missing = |what: &str| Error::internal(format!("{what} of run {} is missing", live.run));
        let run = store.run(live.workspace, &live.run).await?.ok_or_else(|| missing("the row"))?;
        let definition = run.definition.as_ref().ok_or_else(|| missing("the definition"))?;
        let snapshot = match run.snapshot {
            Some(id) => Some(store.snapshot(live.workspace, id).await?.ok_or_else(|| missing("the snapshot"))?),
            None => None,
        };
        let (token, token_expires_on) = self.options.tokens.mint(live.workspace, &live.run, live.attempt.id)?;
        let json = |value: serde_json::Result<serde_json::Value>| value.map_err(Error::internal);
        Ok(AttemptOrder {
            protocol: if definition.distribution.is_single() { SINGLE_AGENT_PROTOCOL } else { AGENT_PROTOCOL },
            attempt: live.attempt.id.0,
            run_id: live.run.to_string(),
            endpoint: settings.endpoint.clone(),
            ca_pem: settings.ca_pem.clone(),
            token,
            token_expires_on,
            definition: json(serde_json::to_value(definition))?,
            snapshot_sha256: snapshot.map(|snapshot| snapshot.digest.to_string()),
            environments: json(serde_json::to_value(target.environments.as_ref().unwrap_or(&settings.environments)))?,
            containers: json(serde_json::to_value(self.containers(definition)))?,
            data: self.data(definition, live.workspace)?,
            archive_limits: json(serde_json::to_value(settings.archive_limits))?,
            variables: self.variables(&run, definition).await?,
            grace_seconds: settings.grace.as_secs(),
            started_at: live.attempt.started_us.map(|us| us / 1_000_000),
            workspace: Some(live.workspace.0),
            heartbeat_seconds: (self.options.patience.heartbeat_limit.as_secs() / 3).clamp(1, 60),
            spool_limit_bytes: settings.spool_limit_bytes,
            mpi: target.mpi.clone(),
            node_key: self.node_key(definition, live.attempt.id),
        })
    }

    /// What the agents know each other by, where one lets another start processes.
    fn node_key(&self, definition: &Definition, attempt: AttemptId) -> Option<String> {
        let spread = &definition.distribution;
        (spread.is_launched() && spread.node_count > 1).then(|| self.options.tokens.node_key(attempt))
    }

    /// How the target runs containers, with the definition's own login before the configured ones.
    fn containers(&self, definition: &Definition) -> ContainerSettings {
        let target = self.options.targets.iter().find(|target| target.name == definition.target);
        let mut settings = target.map(|target| target.containers.settings.clone()).unwrap_or_default();
        let Some(container) = &definition.container else { return settings };
        let Some(login) = &container.registry else { return settings };
        let of_image = match &container.image {
            ImageSource::Named { reference } => registry_of(reference),
            ImageSource::Dockerfile { .. } => None,
        };
        let host = login.address.as_deref().or(of_image).unwrap_or(DEFAULT_REGISTRY).to_owned();
        match self.options.seal.unseal(&login.sealed_password) {
            Ok(password) => settings.logins.insert(0, Login { host, username: login.username.clone(), password }),
            Err(error) => {
                tracing::warn!(error = error.chain(), "the password of a registry cannot be opened");
                settings.login_error = Some(format!("the password for {host} cannot be opened any more; submit the run again"));
            }
        }
        settings
    }

    /// Where its data is, with what opens it; null for a run without any.
    fn data(&self, definition: &Definition, workspace: WorkspaceId) -> Result<Value> {
        if definition.data.is_empty() {
            return Ok(Value::Null);
        }
        let access = self.options.orders.datastores.access(&definition.data, workspace, self.options.seal.as_ref())?;
        serde_json::to_value(access).map_err(Error::internal)
    }

    /// The variables of azureml-wire F.1, and those of F.2 that only the server can know.
    async fn variables(&self, run: &RunRecord, definition: &Definition) -> Result<BTreeMap<String, String>> {
        let workspace = self.options.store.workspace(run.workspace).await?;
        let workspace = workspace.ok_or_else(|| Error::internal(format!("the workspace of run {} is missing", run.id)))?;
        let endpoint = &self.options.orders.endpoint;
        let scope = workspace.path.arm_id();
        let pairs = [
            ("AZUREML_RUN_ID", run.id.to_string()),
            ("AZUREML_ARM_SUBSCRIPTION", workspace.path.subscription_id.clone()),
            ("AZUREML_ARM_RESOURCEGROUP", workspace.path.resource_group.clone()),
            ("AZUREML_ARM_WORKSPACE_NAME", workspace.path.workspace_name.clone()),
            ("AZUREML_ARM_PROJECT_NAME", run.experiment_name.to_string()),
            ("AZUREML_SERVICE_ENDPOINT", endpoint.clone()),
            ("AZUREML_RUN_HISTORY_SERVICE_ENDPOINT", endpoint.clone()),
            ("AZUREML_DISCOVERY_SERVICE_ENDPOINT", format!("{endpoint}/discovery")),
            ("AZUREML_EXPERIMENT_ID", run.experiment.to_string()),
            ("AZUREML_WORKSPACE_ID", run.workspace.to_string()),
            ("AZUREML_WORKSPACE_SCOPE", scope.clone()),
            ("AZUREML_EXPERIMENT_SCOPE", format!("{scope}/experiments/{}", run.experiment_name)),
            ("AZUREML_ROOT_RUN_ID", run.root.to_string()),
            ("AZUREML_DATA_CONTAINER_ID", format!("dcid.{}", run.id)),
            ("AZUREML_FRAMEWORK", format!("{:?}", definition.framework)),
            ("AZUREML_COMMUNICATOR", definition.distribution.communicator().into()),
            ("AZUREML_TARGET_TYPE", "local".into()),
            ("AZUREML_NODE_COUNT", definition.distribution.node_count.to_string()),
        ];
        Ok(pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }
}
