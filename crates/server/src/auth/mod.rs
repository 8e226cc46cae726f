//! Who is asking: access tokens, the endpoints that give them out, and the guard in front of the routes.
//!
//! An application proves itself once with its secret and gets a signed token for an hour; a run gets a token that lives as
//! long as the run. Nothing here decides what a caller may do: `trainyard_core::access` does. Requests are not limited in
//! number: a wrong secret costs the server two hashes, and 256 random bits are not guessed.

pub(crate) mod audience;
pub(crate) mod cache;
pub(crate) mod endpoints;
pub(crate) mod form;
pub(crate) mod guard;
pub(crate) mod keys;
pub(crate) mod oauth;
pub mod secrets;
pub(crate) mod tenant;
pub mod tokens;

pub use tokens::Tokens;
