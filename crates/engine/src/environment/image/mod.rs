//! Environments inside container images: the image itself, the Python in it, and packages on top of it.
//!
//! The order is that of [`super::prepare()`]: what is at hand, what was built before, the lock, the build. Packages are put on top of an image once, as
//! a layer that is named after the image's digest and the canonical hash; conda packages are linked on the machine at the path that they have inside,
//! pip requirements are installed by uv inside the image, with the image's own Python. Which engine there is, how containers are run and ended
//! belongs to [`crate::container`].

mod desk;
mod dockerfile;
mod inspect;
mod layer;
mod login;
mod obtain;
mod on_top;
mod portable;
mod prepare;
mod probe;

#[cfg(test)]
mod tests;

pub(crate) use desk::find;
pub(crate) use on_top::names_beside;
pub(crate) use prepare::{Containment, InImage, prepare_in};
