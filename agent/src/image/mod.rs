//! Container images: names, registries, archives, layers on disk.
pub mod config;
pub mod digest;
pub mod import;
pub mod layers;
pub mod manifest;
pub mod reference;
pub mod store;
