//! What the message of an update tells.

use crate::v1::UpdateStatus;

/// What stands before the id of the task that failed, in the messages of updates that are paused or go back
/// (`orchestration.md` §8.5).
pub const BECAUSE_OF_TASK: &str = "due to failure or early termination of task ";

impl UpdateStatus {
    /// The id of the task because of which the update was paused or goes back, as the message tells.
    #[must_use]
    pub fn culprit(&self) -> Option<&str> {
        let (_, rest) = self.message.split_once(BECAUSE_OF_TASK)?;
        rest.split([';', ' ']).next().filter(|id| !id.is_empty())
    }
}
