//! The data of a run on its node: made ready before the code starts, delivered after it has ended.
//!
//! What is copied lies in the attempt's folder, below `data`; what is seen as a folder is not touched. Where a definition says a place in the working
//! directory, a link stands there. Every file appears when it is whole, an input counts as there when a note says so, and all of it can be begun again
//! after a crash. The words of the command line and the variables (azureml-wire F.2) follow from the paths.

mod bucket;
mod deliver;
mod fault;
mod fetch;
mod files;
mod journal;
mod partial;
mod place;
mod source;
mod web;

pub(super) use self::{deliver::deliver, fetch::fetch, place::Placed};
