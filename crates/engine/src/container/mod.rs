//! Container engines: finding one, the command line of a run, how a container ended, and removing what is left of it.
//!
//! Making images ready (pulling, building, packages on top) is `environment::image`'s; starting and supervising the process that stands
//! for the container is the agent's, who treats it like any other main process.
//!
//! Invariants: a container is named after its attempt, so that it can be removed by whoever knows the attempt; no secret is on a
//! command line; what the code writes in its working directory belongs to the agent's user.

mod client;
mod end;
mod launch;
mod note;
mod settings;

pub(crate) use client::{Candidate, Client, Kind};
pub(crate) use end::{advice, apptainer_failed, close, remove};
pub(crate) use launch::{Mount, Outline, Surroundings, mount_word, outline, surroundings};
pub(crate) use note::{Note, remove_leftovers};
pub use settings::{ContainerSettings, EngineChoice, Login};
