//! From flags to specs of services.

mod apply;
mod container;
mod flags;
mod process;
mod references;

pub(crate) use apply::{apply, new_spec};
pub(crate) use flags::{CreateFlags, ServiceFlags, UpdateFlags};
pub(crate) use process::decode as decode_process;
pub(crate) use references::{Changes, Found};

#[cfg(test)]
mod tests;
