//! The agent against our dispatcher and against scripted ones, over connections in memory, with simulated tasks.
#![allow(clippy::unwrap_used)]

mod cluster;
mod pulls;
mod scripted;
mod sessions;
mod steps;
mod tasks;
