//! The broker behind its two services, with agents and subscribers on connections in memory.
#![allow(clippy::unwrap_used)]

mod harness;
mod refusals;
mod repeats;
mod selections;
mod streams;
