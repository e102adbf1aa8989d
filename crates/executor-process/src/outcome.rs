//! What the end of a process means for its task.

use swarm_agent::ControllerError;

use crate::dir::Exit;

pub(crate) const SHIM_LOST: &str =
    "the supervisor of the process was lost; what was left of the process was killed";
pub(crate) const HOST_RESTARTED: &str = "the host was restarted while the process ran";

pub(crate) fn fatal(text: impl Into<String>) -> ControllerError {
    ControllerError::Fatal(text.into())
}

/// What an end means for the task.
pub(crate) fn result(exit: &Exit) -> Result<(), ControllerError> {
    if exit.never_started {
        return Err(fatal("the process was never started"));
    }
    let memory = exit.out_of_memory.then(|| "out of memory".to_owned());
    match (exit.code, exit.error.clone().or(memory)) {
        (0, None) => Ok(()),
        (0, Some(error)) if !exit.out_of_memory => Err(fatal(error)),
        (0, Some(_)) => Ok(()),
        (code, cause) => Err(ControllerError::Exit { code, cause }),
    }
}

/// A start that failed, by what was written down of it.
pub(crate) fn start_error(exit: &Exit) -> Option<ControllerError> {
    if exit.unhealthy {
        return result(exit).err();
    }
    match &exit.error {
        Some(error) if error != SHIM_LOST && error != HOST_RESTARTED => {
            Some(fatal(format!("starting process failed: {error}")))
        }
        _ => None,
    }
}
