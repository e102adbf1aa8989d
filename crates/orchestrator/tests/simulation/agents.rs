//! What agents say of their tasks: honest ones, and others.

use swarm_api::v1::{Task, TaskState};

use crate::checks::image;
use crate::dice::Dice;

/// What an honest agent does next with a task that is wanted on.
pub(crate) fn next_state(task: &Task, dice: &mut Dice) -> Option<(TaskState, &'static str)> {
    let lot = task.id.bytes().map(usize::from).sum::<usize>();
    let state = task.status.state();
    let goes = |goal: TaskState| (task.desired_state() >= goal).then_some((goal, ""));
    match state {
        TaskState::Assigned => goes(TaskState::Accepted),
        TaskState::Accepted => goes(TaskState::Preparing),
        TaskState::Preparing if image(task) == "v3" => Some((TaskState::Rejected, "no such image")),
        TaskState::Preparing => goes(TaskState::Ready),
        TaskState::Ready if task.desired_state() > TaskState::Ready => Some((TaskState::Starting, "")),
        TaskState::Starting if image(task) == "v4" && lot % 2 == 0 => Some((TaskState::Failed, "broken")),
        TaskState::Starting => Some((TaskState::Running, "")),
        TaskState::Running if task.desired_state() == TaskState::Complete && dice.one_in(2) => {
            Some((TaskState::Complete, ""))
        }
        _ => None,
    }
}

/// A task that is not wanted any more: most stop on request, some come to their own end first.
pub(crate) fn stop_state(dice: &mut Dice) -> Option<(TaskState, &'static str)> {
    match dice.roll(8) {
        0 | 1 => None,
        2 => Some((TaskState::Failed, "of itself")),
        3 => Some((TaskState::Complete, "")),
        _ => Some((TaskState::Shutdown, "")),
    }
}

/// Anything, also what was before. Of other nodes' tasks a dispatcher believes nothing, and
/// nothing that goes back ([`crate::common::Sim::report_all`] is as strict as it).
pub(crate) fn lie(dice: &mut Dice) -> Option<(TaskState, &'static str)> {
    use TaskState::{Accepted, Complete, Failed, Preparing, Ready, Rejected, Running, Shutdown, Starting};
    let any = [Accepted, Preparing, Ready, Starting, Running, Complete, Shutdown, Failed, Rejected];
    dice.one_in(3).then(|| (dice.pick(any), "a lie"))
}

/// An agent for which everything works.
pub(crate) fn flawless(task: &Task) -> Option<(TaskState, &'static str)> {
    let running = task.status.state() == TaskState::Running;
    let done = running && task.desired_state() == TaskState::Complete;
    if done { Some((TaskState::Complete, "")) } else { swarm_reconcile::sim::healthy(task) }
}
