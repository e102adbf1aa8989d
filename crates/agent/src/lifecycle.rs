//! The life of a task on its node, as a pure function: given what it is and what it should be, what is next?

use swarm_api::v1::TaskStatus;
use swarm_api::{TaskState, Text, text};

use crate::ControllerError;

/// A call of the controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Prepare,
    Start,
    Wait,
    Shutdown,
}

impl Operation {
    /// State and message after its success.
    fn success(self) -> (TaskState, &'static str) {
        match self {
            Operation::Prepare => (TaskState::Ready, "prepared"),
            Operation::Start => (TaskState::Running, "started"),
            Operation::Wait => (TaskState::Complete, "finished"),
            Operation::Shutdown => (TaskState::Shutdown, "shutdown"),
        }
    }
}

/// What to do next with a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing, until it is wanted otherwise.
    Rest,
    /// Go to this state; nothing has to be done for it.
    Enter(TaskState, &'static str),
    /// Call the controller.
    Call(Operation),
}

/// What is said of a task that is being prepared.
pub(crate) const PREPARING: &str = "preparing";

/// The next step of a task in state `is` that is wanted in state `want`. The order of the rules counts.
pub(crate) fn next(is: TaskState, want: TaskState) -> Step {
    use TaskState::*;
    if want >= Shutdown {
        return if is >= Complete { Step::Rest } else { Step::Call(Operation::Shutdown) };
    }
    if is > want {
        return Step::Rest;
    }
    match is {
        Preparing => Step::Call(Operation::Prepare),
        Starting => Step::Call(Operation::Start),
        Running => Step::Call(Operation::Wait),
        _ if is >= want => Step::Rest,
        New | Pending | Assigned => Step::Enter(Accepted, "accepted"),
        Accepted => Step::Enter(Preparing, PREPARING),
        Ready => Step::Enter(Starting, "starting"),
        _ => Step::Rest,
    }
}

/// What comes after a call of the controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// The next step.
    GoOn,
    /// The same again, after a pause.
    Retry,
}

/// Longest text of an error that is kept, in bytes.
const MAX_ERROR: usize = 16 * 1024;

/// Notes the end of a call in the task's status.
pub(crate) fn settle(
    status: &mut TaskStatus,
    operation: Operation,
    result: &Result<(), ControllerError>,
) -> Then {
    let error = match (operation, result) {
        (_, Ok(()))
        | (Operation::Prepare, Err(ControllerError::AlreadyPrepared))
        | (Operation::Start, Err(ControllerError::AlreadyStarted)) => {
            let (state, message) = operation.success();
            enter(status, state, message);
            return Then::GoOn;
        }
        // Only a controller that is being given up says this; there is nothing to report.
        (_, Err(ControllerError::Closed)) => return Then::Retry,
        (_, Err(error)) => error,
    };
    status.err = text(error).into();
    if matches!(error, ControllerError::Temporary(_)) {
        return Then::Retry;
    }
    let state = if status.reached(TaskState::Starting) { TaskState::Failed } else { TaskState::Rejected };
    status.state = state as i32;
    Then::GoOn
}

/// Goes to a state that needed no call, or whose call succeeded.
pub(crate) fn enter(status: &mut TaskStatus, state: TaskState, message: &str) {
    status.state = state as i32;
    status.message = message.into();
    status.err = Text::default();
}

/// Notes that there is a controller for the task, or why not.
pub(crate) fn resolved(status: &mut TaskStatus, result: Result<(), &ControllerError>) {
    match result {
        Ok(()) if !status.reached(TaskState::Accepted) => enter(status, TaskState::Accepted, "accepted"),
        Ok(()) => {}
        Err(error) => {
            status.message = text!("resolving controller failed");
            status.err = text(error).into();
            let state = match status.state() {
                state if state < TaskState::Starting => TaskState::Rejected,
                TaskState::Starting | TaskState::Running => TaskState::Failed,
                terminal => terminal,
            };
            status.state = state as i32;
        }
    }
}

fn text(error: &ControllerError) -> String {
    let mut text = error.to_string();
    text.truncate(text.floor_char_boundary(MAX_ERROR));
    text
}

#[cfg(test)]
mod tests {
    use TaskState::*;

    use super::*;

    const ALL: [TaskState; 14] = [
        New, Pending, Assigned, Accepted, Preparing, Ready, Starting, Running, Complete, Shutdown, Failed,
        Rejected, Remove, Orphaned,
    ];

    fn check(want: TaskState, expected: &[(TaskState, Step)]) {
        for is in ALL {
            let step = expected.iter().find(|(state, _)| *state == is).map_or(Step::Rest, |(_, step)| *step);
            assert_eq!(next(is, want), step, "{is:?} wanted in {want:?}");
        }
    }

    #[test]
    fn towards_running() {
        check(
            Running,
            &[
                (New, Step::Enter(Accepted, "accepted")),
                (Pending, Step::Enter(Accepted, "accepted")),
                (Assigned, Step::Enter(Accepted, "accepted")),
                (Accepted, Step::Enter(Preparing, "preparing")),
                (Preparing, Step::Call(Operation::Prepare)),
                (Ready, Step::Enter(Starting, "starting")),
                (Starting, Step::Call(Operation::Start)),
                (Running, Step::Call(Operation::Wait)),
            ],
        );
    }

    #[test]
    fn a_job_goes_the_same_way() {
        for state in ALL {
            assert_eq!(next(state, Complete), next(state, Running), "{state:?}");
        }
    }

    #[test]
    fn towards_ready_it_stops_there() {
        check(
            Ready,
            &[
                (New, Step::Enter(Accepted, "accepted")),
                (Pending, Step::Enter(Accepted, "accepted")),
                (Assigned, Step::Enter(Accepted, "accepted")),
                (Accepted, Step::Enter(Preparing, "preparing")),
                (Preparing, Step::Call(Operation::Prepare)),
            ],
        );
    }

    #[test]
    fn whatever_lives_is_shut_down() {
        let live = [New, Pending, Assigned, Accepted, Preparing, Ready, Starting, Running];
        let expected: Vec<_> = live.iter().map(|s| (*s, Step::Call(Operation::Shutdown))).collect();
        for want in [Shutdown, Remove, Orphaned] {
            check(want, &expected);
        }
    }

    fn after(
        state: TaskState,
        operation: Operation,
        result: Result<(), ControllerError>,
    ) -> (TaskState, String, String, Then) {
        let mut status = TaskStatus {
            state: state as i32,
            message: "before".into(),
            err: "old".into(),
            ..Default::default()
        };
        let then = settle(&mut status, operation, &result);
        (status.state(), status.message.to_string(), status.err.to_string(), then)
    }

    #[test]
    fn success_and_already_done_are_the_same() {
        let expect = |state, message: &str| (state, message.to_owned(), String::new(), Then::GoOn);
        assert_eq!(after(Preparing, Operation::Prepare, Ok(())), expect(Ready, "prepared"));
        let already = Err(ControllerError::AlreadyPrepared);
        assert_eq!(after(Preparing, Operation::Prepare, already), expect(Ready, "prepared"));
        let already = Err(ControllerError::AlreadyStarted);
        assert_eq!(after(Starting, Operation::Start, already), expect(Running, "started"));
        assert_eq!(after(Running, Operation::Wait, Ok(())), expect(Complete, "finished"));
        assert_eq!(after(Running, Operation::Shutdown, Ok(())), expect(Shutdown, "shutdown"));
    }

    #[test]
    fn errors_reject_before_the_start_and_fail_after_it() {
        let fatal = || Err(ControllerError::Fatal("no".into()));
        let expect = |state| (state, "before".to_owned(), "no".to_owned(), Then::GoOn);
        assert_eq!(after(Preparing, Operation::Prepare, fatal()), expect(Rejected));
        assert_eq!(after(Starting, Operation::Start, fatal()), expect(Failed));
        assert_eq!(after(Running, Operation::Wait, fatal()), expect(Failed));
        assert_eq!(after(Accepted, Operation::Shutdown, fatal()), expect(Rejected));
        assert_eq!(after(Running, Operation::Shutdown, fatal()), expect(Failed));
        let exit = Err(ControllerError::Exit { code: 3, cause: None });
        assert_eq!(after(Running, Operation::Wait, exit).2, "task: non-zero exit (3)");
    }

    #[test]
    fn temporary_errors_change_nothing_but_the_text() {
        let temporary = Err(ControllerError::Temporary("engine away".into()));
        let expect = (Preparing, "before".to_owned(), "engine away".to_owned(), Then::Retry);
        assert_eq!(after(Preparing, Operation::Prepare, temporary), expect);
    }

    #[test]
    fn a_task_without_a_controller_is_rejected_or_failed() {
        let error = ControllerError::UnsupportedRuntime;
        for (state, expected) in [
            (Assigned, Rejected),
            (Ready, Rejected),
            (Starting, Failed),
            (Running, Failed),
            (Complete, Complete),
            (Orphaned, Orphaned),
        ] {
            let mut status = TaskStatus { state: state as i32, ..Default::default() };
            resolved(&mut status, Err(&error));
            assert_eq!(status.state(), expected);
            assert_eq!(status.message, "resolving controller failed");
            assert_eq!(status.err, "exec: unsupported runtime");
        }
    }

    #[test]
    fn states_never_go_back() {
        for is in ALL {
            for want in ALL {
                match next(is, want) {
                    Step::Rest => {}
                    Step::Enter(state, _) => assert!(state > is),
                    Step::Call(operation) => {
                        for result in [Ok(()), Err(ControllerError::Fatal(String::new()))] {
                            assert!(after(is, operation, result).0 > is, "{is:?} {want:?}");
                        }
                    }
                }
            }
        }
    }
}
