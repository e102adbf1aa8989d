//! How things are shown: tables, times, names for ids, lines of logs.

pub(crate) mod lines;
pub(crate) mod names;
pub(crate) mod sources;
pub(crate) mod stats;
pub(crate) mod table;
pub(crate) mod time;
pub(crate) mod window;

pub(crate) use names::{Names, is_global};
pub(crate) use table::Table;
