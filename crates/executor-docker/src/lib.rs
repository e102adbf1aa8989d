//! Runs tasks as containers of a Docker Engine, over its HTTP interface.
//!
//! - [`DockerExecutor`]: one engine; says what the node has, makes controllers, sweeps.
//! - `contact`: the first contact with the engine, which may come long after the daemon; `later`: tasks that wait for it.
//! - `controller`: one task's container. Its id is the handle for everything; a restarted daemon finds it by its name, or else by its
//!   labels. What the engine says of the container is the only state.
//! - `again`: containers that somebody starts again.
//! - `spec`: a task as the body of the request that creates its container, a pure function.
//! - `facts`: what the engine can, so that what it is too old for is refused and not left out.
//! - `files`: secrets and configs as files in memory; `networks`: networks that a node makes for the cluster.
//! - `labelled`: containers by their labels, whatever they are called.
//! - `image`: whether and how an image is pulled, once for all tasks that want it; `pull_progress`: how far that is.
//! - `events`: one event stream for all containers. Events are hints only: who is told looks at the container.
//! - `logs`: lines, with their attributes; `demux`: both streams of a process out of the engine's one.
//! - `session`: commands in a container, and its own input and output; `stats`: what it uses.
//! - `client`: the connection; `waiting`: requests that the engine has not answered; `error`: what an engine's answer means for
//!   a task.

mod again;
mod client;
mod contact;
mod controller;
mod demux;
mod describe;
mod error;
mod events;
mod executor;
mod facts;
mod files;
#[doc(hidden)]
pub mod fuzz;
mod image;
mod labelled;
mod later;
mod leftover;
mod logs;
mod networks;
mod observed;
mod ports;
mod pull_progress;
mod session;
mod spec;
mod stats;
mod steps;
mod waiting;

pub use client::DEFAULT_ADDRESS;
pub use error::Error;
pub use executor::{DockerExecutor, default_parallelism};
pub use facts::{Api, EngineFacts};
pub use spec::{ContainerPlan, PlannedFile, PlannedInit, PlannedNetwork, Surroundings, plan};
