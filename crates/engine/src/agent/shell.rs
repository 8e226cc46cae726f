//! The remote shell between the nodes of an attempt, for launchers that start their daemons through one: pods have none.
//!
//! [`door`] is the agent's side on the node that is called: it listens, and lets in who proves that it is of the same attempt. [`caller`] is the
//! program that the launcher starts in place of `ssh`. [`proof`] is what they say to each other. What is done with a line that was asked for is
//! [`super::standby`]'s.
//!
//! Invariant: nothing is started for somebody who does not have the key of the attempt, which only its agents were given.

mod caller;
mod door;
mod proof;

pub use caller::node_shell;
pub(super) use caller::{Called, Directory};
pub(super) use door::{Asked, Door, Guest};
pub(super) use proof::NodeKey;

#[cfg(test)]
mod tests;
