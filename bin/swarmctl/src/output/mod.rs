//! How things are shown: tables, times, names for ids.

pub(crate) mod names;
pub(crate) mod table;
pub(crate) mod time;

pub(crate) use names::Names;
pub(crate) use table::Table;
