//! What a task's spec comes to.

use std::time::Duration;

use prost::Message as _;

use crate::v1::{TaskSpec, task_spec};
use crate::{defaults, duration, extensions, swarmd};

impl TaskSpec {
    /// Time between the signal that asks the task to stop and its kill; the default where the spec says nothing
    /// or is none that we can read.
    pub fn stop_grace_period(&self) -> Duration {
        let grace = match &self.runtime {
            Some(task_spec::Runtime::Container(container)) => container.stop_grace_period,
            Some(task_spec::Runtime::Generic(generic))
                if generic.kind.eq_ignore_ascii_case(extensions::PROCESS_RUNTIME) =>
            {
                let payload = generic.payload.as_ref().map_or(&[][..], |any| &any.value);
                swarmd::ProcessSpec::decode(payload).ok().and_then(|process| process.stop_grace_period)
            }
            _ => None,
        };
        grace.map_or(defaults::STOP_GRACE_PERIOD, |grace| duration::to_std(&grace))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{ContainerSpec, GenericRuntimeSpec};

    fn grace(runtime: Option<task_spec::Runtime>) -> u64 {
        TaskSpec { runtime, ..Default::default() }.stop_grace_period().as_secs()
    }

    #[test]
    fn the_spec_says_how_long_a_stop_may_take_or_ten_seconds() {
        let period = Some(prost_types::Duration { seconds: 42, nanos: 0 });
        assert_eq!(grace(None), 10);
        let container = ContainerSpec { stop_grace_period: period, ..Default::default() };
        assert_eq!(grace(Some(task_spec::Runtime::Container(container))), 42);
        assert_eq!(grace(Some(task_spec::Runtime::Container(ContainerSpec::default()))), 10);
        let process = swarmd::ProcessSpec { stop_grace_period: period, ..Default::default() };
        let payload = prost_types::Any { type_url: String::new(), value: process.encode_to_vec() };
        let generic = GenericRuntimeSpec { kind: "process".to_owned(), payload: Some(payload) };
        assert_eq!(grace(Some(task_spec::Runtime::Generic(generic))), 42);
        let generic = GenericRuntimeSpec { kind: "other".to_owned(), payload: None };
        assert_eq!(grace(Some(task_spec::Runtime::Generic(generic))), 10);
    }
}
