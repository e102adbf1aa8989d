//! The raft node from outside: its storage, a group of one with a real store, a process that is killed, peers
//! that send nonsense, its system calls, and groups of several members over a
//! network in memory and over gRPC, leaders that die in such groups, and members that join with the state of one.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod crash;
mod disk;
mod failover;
mod fetch;
mod force;
mod group;
mod grpc;
#[cfg(debug_assertions)]
mod matrix;
#[cfg(debug_assertions)]
mod power;
mod promises;
mod reseal;
mod restart;
mod single;
mod storage;
mod support;
mod syscalls;
