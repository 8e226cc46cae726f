//! `trainyard exec`: runs one program whose Azure ML this server answers.
//!
//! The program keeps its hard-coded Azure host names. Its environment sends its HTTPS through a proxy on loopback
//! (`proxy`), which answers for the few hosts in `hosts` with certificates of the private CA and hands their requests
//! to the server (`forward`, `endpoint`); connections to every other host pass through untouched (`tunnel`). What the
//! program inherits is decided in `environment`, how it lives and ends in `child`.
//!
//! Nothing outlives the program and nothing outside it notices: no file that others read, no port that others may use.

pub mod child;
pub mod endpoint;
pub mod environment;
mod forward;
pub mod hosts;
pub mod proxy;
mod tunnel;
