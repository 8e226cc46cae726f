//! Grants as the API writes them (ARM ids) and as the core knows them (workspace ids).

use trainyard_core::{
    Error, Result,
    access::{Grant, Role},
    ids::WorkspacePath,
};
use trainyard_store::workspaces::Workspace;
use trainyard_wire::native::AppGrant;

use crate::{
    context::{Caller, workspace_not_found},
    state::AppState,
};

/// Reads grants. A workspace that the caller may not see is not found, like one that does not exist.
pub(crate) async fn read(state: &AppState, caller: &Caller, written: &[AppGrant]) -> Result<Vec<Grant>> {
    if written.is_empty() {
        return Err(Error::invalid("an application without a grant can do nothing: name at least one").with_target("grants"));
    }
    let mut grants = Vec::with_capacity(written.len());
    for AppGrant { workspace, role } in written {
        let role: Role = role.parse().map_err(|error: Error| error.with_target("grants"))?;
        let workspace = match workspace {
            Some(arm_id) => Some(find(state, caller, arm_id).await?.id),
            None => None,
        };
        grants.push(Grant { workspace, role });
    }
    Ok(grants)
}

async fn find(state: &AppState, caller: &Caller, arm_id: &str) -> Result<Workspace> {
    let path = parse(arm_id)?;
    match state.store.workspace_by_path(&path).await? {
        Some(workspace) if caller.sees(workspace.id) => Ok(workspace),
        Some(_) | None => Err(workspace_not_found(&path)),
    }
}

/// Writes grants. One on a workspace that is gone is left out.
pub(crate) async fn written(state: &AppState, grants: &[Grant]) -> Result<Vec<AppGrant>> {
    let mut written = Vec::with_capacity(grants.len());
    for grant in grants {
        let role = grant.role.to_string();
        match grant.workspace {
            None => written.push(AppGrant { workspace: None, role }),
            Some(id) => {
                if let Some(workspace) = state.store.workspace(id).await? {
                    written.push(AppGrant { workspace: Some(workspace.path.arm_id()), role });
                }
            }
        }
    }
    Ok(written)
}

/// The names in an ARM id; its literal parts in any case.
fn parse(arm_id: &str) -> Result<WorkspacePath> {
    let parts: Vec<&str> = arm_id.trim_matches('/').split('/').collect();
    let literal = |at: usize, text: &str| parts.get(at).is_some_and(|part| part.eq_ignore_ascii_case(text));
    let fits = parts.len() == 8
        && literal(0, "subscriptions")
        && literal(2, "resourceGroups")
        && literal(4, "providers")
        && literal(5, "Microsoft.MachineLearningServices")
        && literal(6, "workspaces");
    if !fits {
        let expected = "/subscriptions/{sub}/resourceGroups/{group}/providers/Microsoft.MachineLearningServices/workspaces/{name}";
        return Err(Error::invalid(format!("`{arm_id}` is not the id of a workspace: expected {expected}")).with_target("grants"));
    }
    Ok(WorkspacePath { subscription_id: parts[1].into(), resource_group: parts[3].into(), workspace_name: parts[7].into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arm_id_is_read_in_any_case_and_anything_else_is_told() {
        let path = WorkspacePath { subscription_id: "S".into(), resource_group: "g".into(), workspace_name: "W".into() };
        assert_eq!(parse(&path.arm_id()).unwrap(), path);
        assert_eq!(parse(&path.arm_id().replace("resourceGroups", "RESOURCEGROUPS")).unwrap(), path);
        for broken in ["", "default", "/subscriptions/s/resourceGroups/g", "/a/s/b/g/c/d/e/w"] {
            assert!(parse(broken).unwrap_err().message().contains("is not the id of a workspace"), "{broken}");
        }
    }
}
