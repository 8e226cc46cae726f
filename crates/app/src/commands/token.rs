//! `trainyard token`: an access token for scripts that speak the API themselves.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use crate::{client::Client, printer::Printer};

/// Prints a token of the client file's application.
pub async fn run(client: &Client, printer: &Printer) -> Result<ExitCode> {
    let token = client.token().await?;
    printer.data(&json!({ "token_type": "Bearer", "access_token": token }), |_| token.clone())?;
    Ok(ExitCode::SUCCESS)
}
