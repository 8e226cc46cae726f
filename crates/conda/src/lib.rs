//! conda packages without conda: which ones an environment needs ([`solve()`]), their installation into a folder ([`install()`]), and their
//! files for a machine without a network ([`fetch()`]).
//!
//! The only place that knows the `rattler` crates, whose types change with every release: none of them is in a signature here.
//! What goes in are the words of `trainyard_core::environment`, what comes out is a list of [`trainyard_core::environment::LockedConda`].
//! Whether and where an environment is built, who waits for whom and what happens to an unfinished one is the engine's
//! business. Scripts that packages bring along for their installation are never executed.
//!
//! Invariant: an installation is made of a locked list and of nothing else, so that a fresh solve and a lock from a year ago
//! go through the same code. No text that leaves this crate holds a credential.

mod access;
mod channel;
mod error;
mod fetch;
mod install;
mod kept;
mod platform;
mod progress;
mod solve;

#[cfg(test)]
mod tests;

pub use access::{Access, Credential, Secret};
pub use channel::{Channels, resolve};
pub use error::CondaError;
pub use fetch::fetch;
pub use install::install;
pub use kept::{Kept, indexes_in, kept_package, kept_packages};
pub use platform::platform;
pub use progress::Watch;
pub use solve::{Request, solve};
