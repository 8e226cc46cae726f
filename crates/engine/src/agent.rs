//! The agent: the process beside the user's code on a node.
//!
//! It fetches the snapshot, prepares the environment, runs the code, ships logs and outputs, and keeps a durable record of how the
//! code ended. It is the same on every engine and speaks HTTP to the server; engines only start, watch and stop it. It
//! outlives the server, and the server may start it again at any time for the same folder: what happened is read from
//! the folder ([`folder::AttemptFolder`]), never remembered.
//!
//! Invariants: the user's code of an attempt is started at most once; an end that was not recorded is recorded as lost, never
//! guessed; nothing of the code's process tree outlives the attempt's report of its end.

mod client;
mod connection;
mod contained;
mod control;
mod crew;
mod data;
pub mod folder;
mod life;
mod meeting;
mod memory;
mod mpi;
pub mod notes;
mod outputs;
mod ports;
mod prepare;
mod process;
mod ranks;
mod report;
mod shell;
mod ship;
mod shown;
mod spool;
mod standby;
mod supervise;
mod tail;
mod tree;
mod variables;
mod walk;

pub use life::main;
pub use mpi::{rank_log, rank_of_note};
pub(crate) use prepare::node_name;
pub use shell::node_shell;
pub(crate) use tree::ATTEMPT_VARIABLE;
pub use tree::{end_leftovers, kill};
pub(crate) use variables::OWN_POD_VARIABLE;
