//! HTTP: one list of routes, one list of middleware, authentication, and per dialect short handlers, conversions and the
//! error table.
//!
//! The way of a request: [`layers`] → [`routes`] → a handler that unwraps, authorises, calls the
//! store or the engine, and converts. This crate has no SQL and starts no process; who may do what is decided in
//! `trainyard_core::access`, what may happen to a run in `trainyard_core::run`.

pub mod auth;
mod azureml;
pub mod bootstrap;
pub mod clock;
mod computes;
mod context;
pub mod curated;
mod failure;
mod json;
mod key_file;
mod layers;
mod metrics;
mod native;
mod query;
mod range;
mod routes;
pub mod sealing;
mod serve;
pub mod signing;
pub mod state;
mod status;
pub mod tls;
mod upload;

pub use metrics::Metrics;
pub use routes::{Access, RouteInfo, route_list};
pub use serve::{app, serve};
pub use state::{AppState, Inner, Limits, ServerSettings};

#[cfg(test)]
mod tests;
