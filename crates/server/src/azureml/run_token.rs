//! `GET R/token`: a run asks for a fresh token before its own ends (azureml-wire A.6). Nobody else gets one: it would act
//! in the run's name.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::{Path, State},
};
use trainyard_core::{
    Error, ErrorKind,
    access::{Action, Principal},
    ids::RunId,
};
use trainyard_wire::azureml::{time::UtcTime, tokens::RunToken};

use super::error::AzureError;
use crate::{context::Context, state::AppState};

/// A fresh token for the attempt that asks.
pub(crate) async fn refresh(
    State(state): State<AppState>,
    context: Context,
    Path(path): Path<BTreeMap<String, String>>,
) -> Result<Json<RunToken>, AzureError> {
    let asked = RunId::new(path.get("run").map(String::as_str).unwrap_or_default())?;
    let Principal::Run { run, attempt, .. } = &context.principal else {
        return Err(
            Error::new(ErrorKind::Forbidden, "only the run itself gets a token in its name; use the token of your application").into()
        );
    };
    context.allow(Action::WriteRun(&asked))?;
    let (token, expires_on) = state.tokens.mint_run(context.workspace.id, run, *attempt, context.now_us)?;
    Ok(Json(RunToken { token, expiry_time_utc: UtcTime::from_microseconds(expires_on.saturating_mul(1_000_000)) }))
}
