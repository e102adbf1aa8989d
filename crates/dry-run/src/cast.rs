//! Who takes part: the tasks of the service, and those of others that make room for them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use swarm_api::v1::service_spec::Mode;
use swarm_api::v1::{Service, Task, TaskState};
use swarm_api::{Object, Shared, Text};
use swarm_scheduler::{WAITING, is_displaced_by};
use swarm_store::{Event, Received, Subscription, Tables};

/// Where a task of a service belongs: a slot, or a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    Slot(u64),
    Node(String),
}

/// A task of the service.
#[derive(Debug)]
pub(crate) struct Role {
    pub(crate) place: Place,
    /// Its node; empty without one.
    pub(crate) node: String,
    /// It was there, and on a node, before the change.
    pub(crate) ran_before: bool,
    /// It was there before the change.
    pub(crate) is_old: bool,
    /// It has been put on its node.
    pub(crate) assigned: bool,
    /// It is still wanted.
    pub(crate) live: bool,
    pub(crate) err: String,
    /// When it was made, from the beginning.
    pub(crate) at: Duration,
}

/// A task of another service that made room.
#[derive(Debug)]
pub(crate) struct Victim {
    pub(crate) task: Shared<Task>,
    /// Where the one that is made instead is; empty as long as it is nowhere.
    pub(crate) new_node: String,
}

/// Follows the commits of a rehearsal.
#[derive(Debug)]
pub(crate) struct Cast {
    service: String,
    is_job: bool,
    per_node: bool,
    roles: BTreeMap<String, Role>,
    /// New tasks, in the order in which they were made.
    created: Vec<String>,
    victims: Vec<Victim>,
    /// By service and place.
    victims_at: BTreeMap<(Text, u64, Text), usize>,
    /// Names of services whose tasks displace others because of the change.
    displacing: BTreeSet<String>,
    /// Live tasks that are not where they should come to.
    open: BTreeSet<String>,
    /// Victims that nobody has taken the place of.
    homeless: usize,
    /// Tasks that their agents have to look at.
    news: BTreeSet<String>,
    last_news: Duration,
    lagged: bool,
}

fn is_live(task: &Task) -> bool {
    task.desired_state <= TaskState::Complete as i32
}

fn has_ended(task: &Task) -> bool {
    task.status.state > TaskState::Running as i32
}

fn is_on_node(task: &Task) -> bool {
    let state = task.status.state;
    (TaskState::Assigned as i32..=TaskState::Complete as i32).contains(&state)
}

impl Cast {
    /// Those who are there before the change.
    pub(crate) fn new(before: &Tables, service: &Service) -> Cast {
        let mode = service.spec.mode.as_ref();
        let mut cast = Cast {
            service: service.id.clone(),
            is_job: matches!(mode, Some(Mode::ReplicatedJob(_) | Mode::GlobalJob(_))),
            per_node: matches!(mode, Some(Mode::Global(_) | Mode::GlobalJob(_))),
            roles: BTreeMap::new(),
            created: Vec::new(),
            victims: Vec::new(),
            victims_at: BTreeMap::new(),
            displacing: BTreeSet::from([service.spec.annotations.name.clone()]),
            open: BTreeSet::new(),
            homeless: 0,
            news: BTreeSet::new(),
            last_news: Duration::ZERO,
            lagged: false,
        };
        for task in before.tasks().by_service(&service.id).filter(|t| is_live(t) && !has_ended(t)) {
            cast.add(task, true, Duration::ZERO);
        }
        cast
    }

    /// Agents look at everything once.
    pub(crate) fn enter(&mut self, tables: &Tables) {
        self.news.extend(tables.tasks().by_service(&self.service).map(|t| t.id.to_string()));
    }

    fn add(&mut self, task: &Task, is_old: bool, at: Duration) {
        let place = match self.per_node {
            true => Place::Node(task.node_id.to_string()),
            false => Place::Slot(task.slot),
        };
        let role = Role {
            place,
            node: task.node_id.to_string(),
            ran_before: is_old && is_on_node(task),
            is_old,
            assigned: is_on_node(task),
            live: true,
            err: task.status.err.to_string(),
            at,
        };
        self.roles.insert(task.id.to_string(), role);
        self.note(task);
    }

    /// Takes in what was committed.
    pub(crate) fn follow(&mut self, commits: &mut Subscription, now: Duration) {
        while let Some(received) = commits.try_next() {
            match received {
                Received::Commit(commit) => commit.events.iter().for_each(|event| self.event(event, now)),
                Received::Lagged(_) | Received::Closed => {
                    self.lagged = true;
                    return;
                }
            }
        }
    }

    fn event(&mut self, event: &Event, now: Duration) {
        let Object::Task(task) = event.object() else { return };
        if task.service_id != self.service {
            return self.other(event, task, now);
        }
        self.last_news = now;
        match event {
            Event::Created(_) => {
                self.created.push(task.id.to_string());
                self.add(task, false, now);
            }
            Event::Updated { .. } => self.changed(task),
            Event::Removed(_) => {
                self.open.remove(task.id.as_str());
                if let Some(role) = self.roles.get_mut(task.id.as_str()) {
                    role.live = false;
                }
            }
        }
        self.news.insert(task.id.to_string());
    }

    fn changed(&mut self, task: &Task) {
        if let Some(role) = self.roles.get_mut(task.id.as_str()) {
            role.live = is_live(task);
            role.assigned |= is_on_node(task);
            if is_on_node(task) || role.err.is_empty() || !task.status.err.is_empty() {
                role.err = task.status.err.to_string();
            }
            if !task.node_id.is_empty() {
                role.node = task.node_id.to_string();
            }
            self.note(task);
        }
    }

    fn note(&mut self, task: &Task) {
        let goal = if self.is_job { TaskState::Complete } else { TaskState::Running };
        if is_live(task) && !task.status.reached(goal) {
            self.open.insert(task.id.to_string());
        } else {
            self.open.remove(task.id.as_str());
        }
    }

    /// A task of another service.
    fn other(&mut self, event: &Event, task: &Shared<Task>, now: Duration) {
        let displaced = self.displacing.iter().any(|name| is_displaced_by(task, name));
        let key = || {
            let node = if task.slot == 0 { task.node_id.clone() } else { Text::default() };
            (task.service_id.clone(), task.slot, node)
        };
        if displaced {
            let was = event.old().and_then(|old| match old {
                Object::Task(old) => Some(has_ended(old)),
                _ => None,
            });
            if was == Some(false) {
                self.last_news = now;
                self.displacing.insert(task.service_annotations.name.clone());
                self.victims_at.insert(key(), self.victims.len());
                self.victims.push(Victim { task: task.clone(), new_node: String::new() });
                self.homeless += 1;
            }
        } else if !self.victims.is_empty()
            && is_live(task)
            && is_on_node(task)
            && let Some(at) = self.victims_at.get(&key())
            && let Some(victim) = self.victims.get_mut(*at).filter(|v| v.new_node.is_empty())
        {
            victim.new_node = task.node_id.to_string();
            self.homeless -= 1;
        }
    }

    /// Every live task is where it should come to, and whoever made room is elsewhere.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.open.is_empty() && self.homeless == 0
    }

    /// Tasks that wait for other services, and what they say.
    pub(crate) fn waiting(&self) -> Vec<(Place, String)> {
        let waits = |role: &&Role| role.live && !role.assigned && role.err.starts_with(WAITING);
        self.roles.values().filter(waits).map(|role| (role.place.clone(), role.err.clone())).collect()
    }

    /// Number of new tasks.
    pub(crate) fn created(&self) -> usize {
        self.created.len()
    }

    /// When something became of one of them.
    pub(crate) fn last_news(&self) -> Duration {
        self.last_news
    }

    /// Tasks that changed since the last call.
    pub(crate) fn take_news(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.news)
    }

    /// Not everything was seen.
    pub(crate) fn has_lagged(&self) -> bool {
        self.lagged
    }

    pub(crate) fn victims(&self) -> &[Victim] {
        &self.victims
    }

    /// All tasks: those that were there before, then new ones in the order in which they were made.
    pub(crate) fn roles(&self) -> impl Iterator<Item = (&str, &Role)> {
        let old = self.roles.iter().filter(|(_, role)| role.is_old).map(|(id, role)| (id.as_str(), role));
        old.chain(self.created.iter().filter_map(|id| Some((id.as_str(), self.roles.get(id)?))))
    }
}
