//! Managers with real listeners and real TLS; only who leads is made up.

mod calls;
mod losses;
mod world;
