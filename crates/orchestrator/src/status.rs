//! Changes of a service's update status (`orchestration.md` §8.5, §8.6). Each is done only to the spec that it
//! was decided for, and all but the first only as long as the status is of the same update: a rollback of a rollback
//! brings a spec back.

use std::sync::Arc;
use std::time::SystemTime;

use swarm_api::v1::update_config::FailureAction;
use swarm_api::v1::update_status::UpdateState;
use swarm_api::v1::{Service, UpdateStatus};
use swarm_api::{BECAUSE_OF_TASK, Kind, Object, extensions};
use swarm_reconcile::{Guard, Patch, Write};

use crate::place::is_rolling_back;

fn edit(
    service: &Service,
    what: &'static str,
    change: impl Fn(&mut Service) + Send + Sync + 'static,
) -> Patch {
    let edit = move |object: &Object| {
        let Object::Service(service) = object else { return None };
        let mut changed = service.clone();
        change(&mut changed);
        (changed != *service).then_some(Object::Service(changed))
    };
    let write = Write::Edit { kind: Kind::Service, id: service.id.clone(), what, edit: Arc::new(edit) };
    Patch::new(write).guard(Guard::spec_of(service))
}

/// The same, as long as the service's update is the one that is known here, and has come to what is known.
fn edit_of_update(
    service: &Service,
    what: &'static str,
    change: impl Fn(&mut Service) + Send + Sync + 'static,
) -> Patch {
    let update = |s: &Service| s.update_status.as_ref().map(|status| (status.state(), status.started_at));
    let known = update(service);
    edit(service, what, move |service| {
        if update(service) == known {
            change(service);
        }
    })
}

/// The update has begun.
pub(crate) fn begin(service: &Service, now: SystemTime) -> Patch {
    edit(service, "begin update of", move |service| {
        service.update_status.get_or_insert_with(|| UpdateStatus {
            state: UpdateState::Updating as i32,
            message: "update in progress".into(),
            started_at: Some(now.into()),
            completed_at: None,
        });
    })
}

/// The update, or the rollback, is done. It may have had the status of one that was done before.
pub(crate) fn complete(service: &Service, now: SystemTime) -> Patch {
    let (state, message) = match is_rolling_back(service) {
        true => (UpdateState::RollbackCompleted, "rollback completed"),
        false => (UpdateState::Completed, "update completed"),
    };
    edit_of_update(service, "complete update of", move |service| {
        let Some(status) = &mut service.update_status else { return };
        status.state = state as i32;
        status.message = message.into();
        status.completed_at = Some(now.into());
    })
}

/// The update, or the rollback, is halted because of a task.
pub(crate) fn pause(service: &Service, task: &str, action: FailureAction) -> Patch {
    let (state, what) = match (is_rolling_back(service), action) {
        (true, FailureAction::Pause) => (UpdateState::RollbackPaused, "update"),
        (true, _) => (UpdateState::RollbackPaused, "rollback"),
        (false, _) => (UpdateState::Paused, "update"),
    };
    let message = format!("{what} paused {BECAUSE_OF_TASK}{task}");
    set(service, state, message)
}

fn set(service: &Service, state: UpdateState, message: String) -> Patch {
    edit_of_update(service, "pause update of", move |service| {
        if let Some(status) = &mut service.update_status {
            status.state = state as i32;
            status.message.clone_from(&message);
        }
    })
}

/// An operator's request to rebalance the service is done: no spec has it any more, nor does anything else of them change.
pub(crate) fn rebalanced(service: &Service) -> Patch {
    edit(service, "end rebalance of", move |service| {
        for spec in std::iter::once(&mut service.spec).chain(&mut service.previous_spec) {
            extensions::take_request(spec);
        }
    })
}

/// Back to the spec before. Without one there is nothing to go back to: the update is paused and says why, where
/// the original would stay in UPDATING for good (`orchestration.md` §20.15).
pub(crate) fn roll_back(service: &Service, task: &str) -> Patch {
    if service.previous_spec.is_none() {
        let message = format!("update paused {BECAUSE_OF_TASK}{task}; no previous spec to roll back to");
        return set(service, UpdateState::Paused, message);
    }
    let message = format!("update rolled back {BECAUSE_OF_TASK}{task}");
    edit_of_update(service, "roll back", move |service| {
        let Some(mut spec) = service.previous_spec.take() else { return };
        // A request is of the service, not of a spec.
        extensions::take_request(&mut spec);
        if extensions::take_request(&mut service.spec) {
            extensions::put_request(&mut spec);
        }
        service.spec = spec;
        service.spec_version = service.previous_spec_version.take();
        let status = service.update_status.get_or_insert_default();
        status.state = UpdateState::RollbackStarted as i32;
        status.message.clone_from(&message);
    })
}
