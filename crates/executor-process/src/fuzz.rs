//! What reads bytes of a manager, of a disk or of another process, as functions of bytes, for the fuzz targets. Not for
//! anybody else.

use prost::Name as _;
use swarm_api::swarmd::ProcessSpec;
use swarm_api::v1::{GenericRuntimeSpec, Task, TaskSpec, task_spec};

use crate::dir::{Exit, Running};
use crate::launch::{self, Launch};
use crate::procfs::Stat;
use crate::shim::{Request, Word};

/// A line of a task's log.
pub fn log_line(line: &[u8]) -> bool {
    crate::log::parse(line).is_some()
}

/// The files of a task's directory.
pub fn records(bytes: &[u8]) -> bool {
    serde_json::from_slice::<Launch>(bytes).is_ok()
        | serde_json::from_slice::<Running>(bytes).is_ok()
        | serde_json::from_slice::<Exit>(bytes).is_ok()
}

/// What shim and daemon tell each other, and what the kernel tells of a process.
pub fn words(text: &str) -> bool {
    Word::parse(text).is_some() | Request::parse(text).is_some() | Stat::parse(text).is_some()
}

/// The payload of a native process's runtime, to the instructions for its shim.
pub fn process_spec(payload: &[u8]) -> bool {
    let payload = prost_types::Any { type_url: ProcessSpec::type_url(), value: payload.to_vec() };
    let runtime = GenericRuntimeSpec { kind: launch::RUNTIME.to_owned(), payload: Some(payload) };
    let spec = TaskSpec { runtime: Some(task_spec::Runtime::Generic(runtime)), ..TaskSpec::default() };
    let task = Task { id: "t".into(), spec: spec.into(), ..Task::default() };
    launch::launch(&task, None, None, Err("none")).is_ok()
}
