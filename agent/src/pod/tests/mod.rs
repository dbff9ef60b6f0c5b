//! Tests of the pod's whole life against a node made of memory.

mod end;
mod images;
mod restarts;
mod sim;
mod statuses;
mod up;
mod world;
