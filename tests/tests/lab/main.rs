//! Managers on hosts of their own, which die, freeze, move, are cut off, run out of disk, and have a wrong clock.

mod common;
mod helpers;
mod histories;
mod quorum;
mod trouble;
