//! `trainyard workspace`: creates and lists workspaces.

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;
use reqwest::Method;
use trainyard_wire::native::Workspace;

use crate::{
    client::Client,
    printer::{Printer, table},
};

/// Arguments of `workspace`.
#[derive(clap::Args)]
pub struct WorkspaceArgs {
    /// What to do
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// List the workspaces that you may see
    List,
    /// Create a workspace; takes an Owner of the server
    Create {
        /// Its name
        name: String,
        /// Its resource group [default: the present workspace's]
        #[arg(long)]
        resource_group: Option<String>,
        /// Its subscription [default: the present workspace's]
        #[arg(long)]
        subscription: Option<String>,
        /// Its region [default: the server's]
        #[arg(long)]
        region: Option<String>,
    },
}

/// Does what was asked.
pub async fn run(args: WorkspaceArgs, client: &Client, printer: &Printer) -> Result<ExitCode> {
    let workspaces: Vec<Workspace> = match args.action {
        Action::List => client.get("/api/v1/workspaces").await?,
        Action::Create { name, resource_group, subscription, region } => {
            let present = client.workspace();
            let new = Workspace {
                id: None,
                subscription_id: subscription.unwrap_or_else(|| present.subscription_id.clone()),
                resource_group: resource_group.unwrap_or_else(|| present.resource_group.clone()),
                workspace_name: name,
                region,
                created: None,
            };
            vec![client.send_json(Method::POST, "/api/v1/workspaces", &new).await?]
        }
    };
    printer.data(&workspaces, |workspaces| {
        let rows = workspaces.iter().map(|workspace| {
            let Workspace { workspace_name, resource_group, subscription_id, region, .. } = workspace;
            [workspace_name.clone(), resource_group.clone(), subscription_id.clone(), region.clone().unwrap_or_default()]
        });
        table(["WORKSPACE", "GROUP", "SUBSCRIPTION", "REGION"], rows)
    })?;
    Ok(ExitCode::SUCCESS)
}
