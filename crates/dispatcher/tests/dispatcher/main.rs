//! The dispatcher on a local store, called as the gRPC layer would, in paused time. Numbers in the names'
//! comments are the scenarios of the reference sheet.

#![allow(clippy::unwrap_used)]

mod assignments;
mod driver_secrets;
mod harness;
mod nodes;
mod scale;
mod sessions;
mod statuses;
