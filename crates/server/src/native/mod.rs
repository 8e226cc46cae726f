//! This server's own API, under `/api/v1`, and the addresses for operators.

pub(crate) mod apps;
pub(crate) mod attempts;
pub(crate) mod computes;
pub(crate) mod drain;
pub(crate) mod environments;
pub(crate) mod error;
pub(crate) mod grants;
pub(crate) mod health;
pub(crate) mod logs;
pub(crate) mod nodes;
pub(crate) mod runs;
pub(crate) mod whoami;
pub(crate) mod workspaces;
