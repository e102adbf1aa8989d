//! Order and meaning of task states.

use crate::v1::TaskState;

impl TaskState {
    /// The task has ended and will not run again.
    pub fn is_terminal(self) -> bool {
        self > TaskState::Running
    }

    /// The name in capitals, as the contract spells it.
    pub fn name(self) -> &'static str {
        self.as_str_name()
    }
}

impl crate::v1::TaskStatus {
    /// The observed state is at or past `state`. Numbers are compared, so that states this version does not
    /// know keep their place in the order.
    pub fn reached(&self, state: TaskState) -> bool {
        self.state >= state as i32
    }
}
