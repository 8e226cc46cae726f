//! Tests of the whole service without a socket: requests go through every layer to a real store.

mod artifacts;
mod bootstrap;
mod experiments;
mod frame;
mod history;
mod management;
mod native;
mod run_tokens;
pub(crate) mod support;
mod tokens;
