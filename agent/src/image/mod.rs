//! Container images: names, registries, archives, layers on disk.
//!
//! The way of an image: a [`reference::Reference`] is resolved by [`registry`] (or found in an archive by [`import`]), its
//! layers are unpacked by [`layers`] and kept by [`store`], whose [`store::Image`] says everything a container needs.
//! [`puller`] is the daemon's entry, [`cli`] the command line's.
//!
//! Architecture invariants: only `registry` talks to the network, through `api::http`. Only `layers` makes files with names from
//! an archive. Only `store` knows the folder's layout. Nothing here knows of pods.

mod bars;
pub mod cli;
pub mod config;
pub mod digest;
mod fetch;
pub mod import;
pub mod layers;
pub mod manifest;
pub mod puller;
pub mod reference;
pub mod registry;
pub mod store;
