//! Commands in tasks, their own input and output, and what they use, by real daemons: on all nodes, through any manager.

mod figures;
mod losses;
mod sessions;
mod support;
mod terminals;
