//! Who may do what: the only place that decides it.
//!
//! A [`Principal`] is what a verified token says about its bearer. [`may`] answers for one action on one workspace (or on
//! the server as a whole). Whether a caller may even know that a workspace exists is the first question: if not, the answer
//! is [`Decision::Hidden`] and the dialect says 404.

use serde::{Deserialize, Serialize};

use crate::ids::{AppId, AttemptId, RunId, WorkspaceId};

/// What an application may do within a scope. Ordered: each role includes the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Role {
    /// Sees everything in the workspace.
    Reader,
    /// Also creates, changes and cancels.
    Contributor,
    /// Also gives rights: applications, workspace settings.
    Owner,
}

impl std::str::FromStr for Role {
    type Err = crate::Error;
    fn from_str(text: &str) -> crate::Result<Self> {
        match text.to_ascii_lowercase().as_str() {
            "reader" => Ok(Self::Reader),
            "contributor" => Ok(Self::Contributor),
            "owner" => Ok(Self::Owner),
            _ => Err(crate::Error::invalid(format!("`{text}` is not a role: expected Owner, Contributor or Reader"))),
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Reader => "Reader",
            Self::Contributor => "Contributor",
            Self::Owner => "Owner",
        })
    }
}

/// A role on one workspace, or on the server and so on every workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Grant {
    /// The workspace; `None` means all of them and the server itself.
    pub workspace: Option<WorkspaceId>,
    /// The role there.
    pub role: Role,
}

/// Who is asking, as established from a verified token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// An application with its grants.
    App {
        /// Its client id.
        id: AppId,
        /// Its display name, for `createdBy`.
        name: String,
        /// What it was granted.
        grants: Vec<Grant>,
    },
    /// The code of one attempt, or the agent beside it: data plane of one workspace, writing only to its own run.
    Run {
        /// The workspace of the run.
        workspace: WorkspaceId,
        /// The run.
        run: RunId,
        /// The attempt that the token was made for; a later attempt fences it.
        attempt: AttemptId,
    },
}

/// What a caller wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action<'a> {
    /// Read anything in a workspace.
    Read,
    /// Create or change experiments, submit runs: anything not tied to one existing run.
    Write,
    /// Change this run: tags, events, metrics, artifacts, children.
    WriteRun(&'a RunId),
    /// Report the progress of this attempt. Only its own agent does.
    ReportAttempt(AttemptId),
    /// Settings and rights of a workspace.
    Administer,
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Go on.
    Allowed,
    /// The caller may see the scope but not do this: 403.
    Denied,
    /// The caller may not know that the scope exists: 404.
    Hidden,
}

/// Decides whether `principal` may do `action` in `workspace`; `None` is the server itself (listing and creating workspaces,
/// applications of all workspaces).
pub fn may(principal: &Principal, action: Action<'_>, workspace: Option<WorkspaceId>) -> Decision {
    match principal {
        Principal::App { grants, .. } => {
            let Some(role) = role_in(grants, workspace) else {
                return if workspace.is_some() { Decision::Hidden } else { Decision::Denied };
            };
            let needed = match action {
                Action::Read => Role::Reader,
                Action::Write | Action::WriteRun(_) => Role::Contributor,
                Action::Administer => Role::Owner,
                Action::ReportAttempt(_) => return Decision::Denied,
            };
            if role >= needed { Decision::Allowed } else { Decision::Denied }
        }
        Principal::Run { workspace: own, run, attempt } => {
            if workspace != Some(*own) {
                return if workspace.is_some() { Decision::Hidden } else { Decision::Denied };
            }
            match action {
                Action::Read => Decision::Allowed,
                Action::WriteRun(target) if target == run => Decision::Allowed,
                Action::ReportAttempt(target) if target == *attempt => Decision::Allowed,
                Action::Write | Action::WriteRun(_) | Action::ReportAttempt(_) | Action::Administer => Decision::Denied,
            }
        }
    }
}

/// The highest role that `grants` give in `workspace` (`None`: on the server itself).
pub fn role_in(grants: &[Grant], workspace: Option<WorkspaceId>) -> Option<Role> {
    grants.iter().filter(|grant| grant.workspace.is_none() || grant.workspace == workspace).map(|grant| grant.role).max()
}

impl Principal {
    /// What to record as the author: the application's name, or the run.
    pub fn display_name(&self) -> String {
        match self {
            Self::App { name, .. } => name.clone(),
            Self::Run { run, .. } => format!("run {run}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn ws(n: u128) -> WorkspaceId {
        WorkspaceId(Uuid::from_u128(n))
    }

    fn app(grants: &[(Option<u128>, Role)]) -> Principal {
        let grants = grants.iter().map(|(w, role)| Grant { workspace: w.map(ws), role: *role }).collect();
        Principal::App { id: AppId(Uuid::from_u128(9)), name: "app".into(), grants }
    }

    #[test]
    fn roles_include_each_other_and_strangers_see_nothing() {
        let run = RunId::new("r1").unwrap();
        let actions = [Action::Read, Action::Write, Action::WriteRun(&run), Action::Administer];
        let table = [
            (app(&[(Some(1), Role::Reader)]), [1, 0, 0, 0]),
            (app(&[(Some(1), Role::Contributor)]), [1, 1, 1, 0]),
            (app(&[(Some(1), Role::Owner)]), [1, 1, 1, 1]),
            (app(&[(None, Role::Owner)]), [1, 1, 1, 1]),
        ];
        for (principal, expected) in table {
            for (action, allowed) in actions.iter().zip(expected) {
                let decision = may(&principal, *action, Some(ws(1)));
                assert_eq!(decision == Decision::Allowed, allowed == 1, "{principal:?} {action:?}");
                assert_ne!(decision, Decision::Hidden);
            }
        }
        assert_eq!(may(&app(&[(Some(2), Role::Owner)]), Action::Read, Some(ws(1))), Decision::Hidden);
        assert_eq!(may(&app(&[(Some(2), Role::Owner)]), Action::Administer, None), Decision::Denied);
    }

    #[test]
    fn a_run_token_writes_only_its_own_run() {
        let own = RunId::new("mine").unwrap();
        let other = RunId::new("other").unwrap();
        let attempt = AttemptId(Uuid::from_u128(5));
        let token = Principal::Run { workspace: ws(1), run: own.clone(), attempt };
        assert_eq!(may(&token, Action::Read, Some(ws(1))), Decision::Allowed);
        assert_eq!(may(&token, Action::WriteRun(&own), Some(ws(1))), Decision::Allowed);
        assert_eq!(may(&token, Action::ReportAttempt(attempt), Some(ws(1))), Decision::Allowed);
        assert_eq!(may(&token, Action::WriteRun(&other), Some(ws(1))), Decision::Denied);
        assert_eq!(may(&token, Action::Write, Some(ws(1))), Decision::Denied);
        assert_eq!(may(&token, Action::ReportAttempt(AttemptId(Uuid::from_u128(6))), Some(ws(1))), Decision::Denied);
        assert_eq!(may(&token, Action::Read, Some(ws(2))), Decision::Hidden);
        assert_eq!(may(&token, Action::Administer, None), Decision::Denied);
    }

    #[test]
    fn only_the_agent_reports_an_attempt() {
        let attempt = AttemptId(Uuid::from_u128(5));
        assert_eq!(may(&app(&[(None, Role::Owner)]), Action::ReportAttempt(attempt), Some(ws(1))), Decision::Denied);
    }
}
