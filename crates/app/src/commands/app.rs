//! `trainyard app`: applications (service principals) and their rights. A secret is shown once, when it is made.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Subcommand;
use reqwest::Method;
use serde_json::json;
use trainyard_wire::native::{App, AppGrant, AppSecret, NewApp};

use crate::{
    client::Client,
    printer::{Printer, table},
};

/// Arguments of `app`.
#[derive(clap::Args)]
pub struct AppArgs {
    /// What to do
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Create an application and show its secret, once
    Create {
        /// Its name
        name: String,
        /// Owner, Contributor or Reader
        #[arg(long, default_value = "Contributor")]
        role: String,
        /// On every workspace and the server itself, instead of the present workspace
        #[arg(long)]
        everywhere: bool,
        /// Write a client.json for it, readable only by you
        #[arg(long, value_name = "FILE")]
        write_client: Option<std::path::PathBuf>,
    },
    /// List applications
    List,
    /// Give an application a new secret; the old one and its tokens stop working
    Rotate {
        /// Its client id
        client_id: String,
    },
    /// Delete an application; its tokens stop working
    Delete {
        /// Its client id
        client_id: String,
    },
}

/// Does what was asked.
pub async fn run(args: AppArgs, client: &Client, printer: &Printer) -> Result<ExitCode> {
    match args.action {
        Action::Create { name, role, everywhere, write_client } => {
            let grant = AppGrant { workspace: (!everywhere).then(|| client.workspace().arm_id()), role };
            let new = NewApp { name, grants: vec![grant] };
            let secret: AppSecret = client.send_json(Method::POST, "/api/v1/apps", &new).await?;
            match write_client {
                Some(path) => write(client, &secret, &path, printer)?,
                None => show(printer, &secret)?,
            }
        }
        Action::List => {
            let apps: Vec<App> = client.get("/api/v1/apps").await?;
            printer.data(&apps, |apps| table(["CLIENT ID", "NAME", "RIGHTS", "CREATED"], apps.iter().map(row)))?;
        }
        Action::Rotate { client_id } => {
            let path = format!("/api/v1/apps/{client_id}/rotate");
            let secret: AppSecret = client.send(client.request(Method::POST, &path).await?).await?.json().await?;
            show(printer, &secret)?;
        }
        Action::Delete { client_id } => {
            if client_id == client.file().client_id {
                bail!("{client_id} is the application that this command uses itself; use another client file to delete it");
            }
            client.send(client.request(Method::DELETE, &format!("/api/v1/apps/{client_id}")).await?).await?;
            printer.note(&format!("application {client_id} was deleted"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn row(app: &App) -> [String; 4] {
    let right = |grant: &AppGrant| match &grant.workspace {
        Some(workspace) => format!("{} on {}", grant.role, workspace.rsplit('/').next().unwrap_or(workspace)),
        None => format!("{} everywhere", grant.role),
    };
    let rights: Vec<String> = app.grants.iter().map(right).collect();
    [app.client_id.to_string(), app.name.clone(), rights.join(", "), app.created.get(..19).unwrap_or(&app.created).to_owned()]
}

fn show(printer: &Printer, secret: &AppSecret) -> Result<()> {
    let AppSecret { client_id, client_secret, tenant_id } = secret;
    printer.data(&json!({ "client_id": client_id, "client_secret": client_secret, "tenant_id": tenant_id }), |_| {
        format!("client_id      {client_id}\nclient_secret  {client_secret}\ntenant_id      {tenant_id}")
    })?;
    printer.note("the secret is not shown again");
    Ok(())
}

/// A client file for the new application, in the present workspace.
fn write(client: &Client, secret: &AppSecret, path: &std::path::Path, printer: &Printer) -> Result<()> {
    let workspace = client.workspace().clone();
    let file = crate::client_file::ClientFile {
        client_id: secret.client_id.to_string(),
        client_secret: secret.client_secret.clone(),
        subscription_id: workspace.subscription_id,
        resource_group: workspace.resource_group,
        workspace_name: workspace.workspace_name,
        ..client.file().clone()
    };
    trainyard_engine::trust::replace_file(path, &serde_json::to_vec_pretty(&file)?, trainyard_engine::trust::Access::Owner)?;
    printer.note(&format!("the client file is {}", path.display()));
    Ok(())
}
