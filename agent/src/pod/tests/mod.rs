//! Tests of the pod's whole life against a node made of memory.

mod end;
mod images;
mod managing;
mod node;
mod properties;
mod restarts;
mod sim;
mod statuses;
mod up;
mod working;
mod world;
