//! What the scheduler decides must be right on the tables that it was shown.

use std::collections::BTreeMap;
use std::time::SystemTime;

use swarm_api::Shared;
use swarm_api::v1::Task;
use swarm_reconcile::{Assignments, Group};
use swarm_store::Tables;

use crate::broken::{Held, broken};
use crate::checks::{is_live, may_run};
use crate::order::not_yet;
use crate::room::{Forgiven, Taken, refuses};
use crate::watched::{Log, assigned_in};

/// Every task goes to a node that takes tasks, satisfies what it asks for, and has room and ports for it.
pub(crate) fn placements(
    now: SystemTime,
    forgiven: &Forgiven,
    tables: &Tables,
    groups: &[Group],
    assigned: &[Assignments],
) -> Held {
    let mut placed: BTreeMap<&str, (Taken, Vec<&Shared<Task>>)> = BTreeMap::new();
    for (id, to, generic) in assigned_in(groups, assigned) {
        let fault =
            |what: &str| broken("tasks are sent where they may go", format!("{id} goes to {to}: {what}"));
        let Some(task) = tables.tasks().get(id) else { return fault("it is gone") };
        let Some(node) = tables.nodes().get(to) else { return fault("there is no such node") };
        let (taken, new) =
            placed.entry(to).or_insert_with(|| (Taken::of(tables, to, now, forgiven, |_| true), Vec::new()));
        if let Some(why) = refuses(node, task, taken) {
            return fault(why);
        }
        taken.add_with(task, generic);
        let most = task.spec.placement.as_ref().map_or(0, |p| p.max_replicas) as usize;
        // Each version has its own limit. Which one of several versions was asked about first is not to be seen here: a service
        // that was rolled back has its earlier version, of which tasks may have waited all the time.
        let counts = |t: &Shared<Task>| t.service_id == task.service_id && is_live(t);
        let known = tables.tasks().by_node(to).filter(|t| may_run(t) && counts(t)).count();
        let same = known + new.iter().filter(|t| t.spec_version == task.spec_version && counts(t)).count();
        if most > 0 && same >= most {
            return fault("it has enough tasks of the service");
        }
        new.push(task);
    }
    Ok(())
}

impl Log {
    /// Nothing starts before what it waits for was so. What has started once may start again.
    pub(crate) fn start_order(
        &mut self,
        tables: &Tables,
        groups: &[Group],
        assigned: &[Assignments],
    ) -> Held {
        let ids = assigned_in(groups, assigned);
        let tasks = ids.into_iter().filter_map(|(id, ..)| tables.tasks().get(id));
        let mut fresh = Vec::new();
        for task in tasks {
            let what = (task.service_id.to_string(), task.job_iteration, task.spec.clone());
            let Some(service) = tables.services().get(&task.service_id) else { continue };
            if !self.started.contains(&what)
                && let Some(why) = not_yet(tables, service)
            {
                let what = format!("{} of {} starts before its time: {why}", task.id, service.id);
                return broken("services start in their order", what);
            }
            fresh.push(what);
        }
        for what in fresh {
            if !self.started.contains(&what) {
                self.started.push(what);
            }
        }
        Ok(())
    }
}
