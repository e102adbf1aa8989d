//! From flags to specs of services.

mod apply;
mod container;
mod container_flags;
mod env;
mod extensions;
mod flags;
mod lists;
mod privileges;
mod process;
mod references;
mod registry;
mod start;

pub(crate) use apply::{apply, changed, new_spec};
pub(crate) use flags::{CreateFlags, ServiceFlags, UpdateFlags};
pub(crate) use process::decode as decode_process;
pub(crate) use references::{Changes, Found};
pub(crate) use registry::{credentials, lost_credentials};
pub(crate) use start::{command_line, dependency};

#[cfg(test)]
mod container_tests;
#[cfg(test)]
mod lists_tests;
#[cfg(test)]
mod tests;
