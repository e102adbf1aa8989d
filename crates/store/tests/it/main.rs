//! The store through its public door.
#![allow(clippy::unwrap_used)] // the helpers belong to tests too

mod faults;
mod many;
mod model;
mod races;
mod rules;
mod snapshots;
mod staged;
mod subscription;
mod support;
