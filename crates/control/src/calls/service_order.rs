//! Services that wait for others before they start: checked inside the transaction that writes one of them.

use swarm_api::StoreObject as _;
use swarm_api::extensions::{Condition, StartOrder};
use swarm_api::v1::{Service, ServiceSpec};
use swarm_store::Tables;

use super::service::is_job;
use crate::error::{Error, Result};

/// Whom the service waits for is there, can come to be as it must be, and does not wait for the service itself.
pub(super) fn check(tables: &Tables, spec: &ServiceSpec) -> Result<()> {
    let own = &spec.annotations.name;
    let order = order_of(spec)?;
    for dependency in &order.0 {
        let name = &dependency.service;
        if name.eq_ignore_ascii_case(own) {
            return Err(Error::argument(format!("service {own} can't wait for itself")));
        }
        let Some(known) = tables.services().by_name(name).next() else {
            return Err(Error::argument(format!(
                "service {own} is to wait for service {name}, which is not there: create that first"
            )));
        };
        if known.annotations().name != *name {
            return Err(Error::argument(format!(
                "service {own} is to wait for service {name}, whose name is written {}",
                known.annotations().name
            )));
        }
        match (is_job(&known.spec), dependency.condition) {
            (true, Condition::Completed) | (false, Condition::Healthy | Condition::Running) => {}
            (true, _) => {
                return Err(Error::argument(format!(
                    "service {name} is a job, which others wait for until it has completed: {name}:completed"
                )));
            }
            (false, Condition::Completed) => {
                return Err(Error::argument(format!(
                    "service {name} is no job, and never completes: wait for {name}:healthy or {name}:running"
                )));
            }
        }
    }
    match swarm_scheduler::circle(tables, own, &order) {
        None => Ok(()),
        Some(way) => Err(Error::argument(format!(
            "service {own} would wait for itself: {own} waits for {}",
            way.join(", which waits for ")
        ))),
    }
}

/// The same for a change from one spec to another: what was there before is not asked about again, so that other changes
/// can be made whatever became of those that the service waits for.
pub(super) fn check_change(tables: &Tables, from: &ServiceSpec, to: &ServiceSpec) -> Result<()> {
    if order_of(to)? == StartOrder::read(&from.annotations.labels).unwrap_or_default() {
        return Ok(());
    }
    check(tables, to)
}

fn order_of(spec: &ServiceSpec) -> Result<StartOrder> {
    StartOrder::read(&spec.annotations.labels).map_err(Error::argument)
}

/// Nobody waits for the service: it may go.
pub(super) fn unwaited(tables: &Tables, service: &Service) -> Result<()> {
    let name = &service.spec.annotations.name;
    let waiting = tables.services().by_awaited(name).filter(|other| other.id != service.id);
    let names: Vec<&str> = waiting.map(|other| other.annotations().name.as_str()).collect();
    let who = match names[..] {
        [] => return Ok(()),
        [one] => format!("service {one} waits"),
        _ => format!("services {} wait", names.join(", ")),
    };
    Err(Error::precondition(format!(
        "service {name} can't be removed: {who} for it before starting. Remove what waits first, or let it wait for \
         nothing (service update --depends-on \"\")"
    )))
}
