//! The broker of task sessions through its gRPC faces, with agents that are played by the test.

#![allow(clippy::unwrap_used)] // a test that can't be set up has failed

mod harness;
mod joining;
mod refusals;
