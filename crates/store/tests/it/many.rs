//! Many tasks created and replaced at once, compared with the same done one by one.

use std::collections::BTreeSet;

use futures::executor::block_on;
use proptest::prelude::*;
use swarm_api::Shared;
use swarm_api::v1::{Task, TaskState};
use swarm_store::{Error, Store, Tables};

use crate::support::{service, task};

const STATES: [TaskState; 4] =
    [TaskState::Pending, TaskState::Assigned, TaskState::Running, TaskState::Failed];

/// Ids begin alike over more bytes than the index looks at, or not.
fn id(n: usize) -> String {
    if n.is_multiple_of(3) { format!("the-same-beginning-{n}") } else { format!("{n:05}") }
}

fn node(n: usize) -> String {
    if n.is_multiple_of(4) { String::new() } else { format!("n{}", n % 7) }
}

/// The next version of a task; most changes are those that are easily told, some are not.
fn changed(task: &Shared<Task>, by: usize) -> Option<Task> {
    let mut task = Task::clone(task);
    match by % 11 {
        0 => return None,
        1 => task.annotations.name = format!("name-{}", by % 5),
        2 => task.slot += 1,
        3 => task.spec.force_update += 1,
        _ => {
            task.node_id = node(by / 11).into();
            task.status.state = STATES[by % 4] as i32;
            task.desired_state = STATES[by / 4 % 4] as i32;
        }
    }
    Some(task)
}

/// Everything that the indexes say, in words.
fn answers(tables: &Tables) -> Vec<Vec<String>> {
    let ids = |tasks: Vec<&Shared<Task>>| tasks.iter().map(|task| task.id.to_string()).collect::<Vec<_>>();
    let tasks = tables.tasks();
    let mut answers = vec![ids(tasks.iter().collect()), ids(tasks.by_name_prefix("").collect())];
    for state in STATES {
        answers.push(ids(tasks.by_observed_state(state).collect()));
        answers.push(ids(tasks.by_desired_state(state).collect()));
    }
    answers.extend((0..7).map(|n| ids(tasks.by_node(&format!("n{n}")).collect())));
    answers.extend((0..9).map(|slot| ids(tasks.by_slot("s", slot).collect())));
    let names: BTreeSet<String> = tasks.iter().map(|task| swarm_api::naming::task_name(task)).collect();
    answers.extend(names.iter().map(|name| ids(tasks.by_name(name).collect())));
    answers
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..Default::default() })]

    #[test]
    fn many_tasks_at_once_become_what_they_become_one_by_one(
        count in prop_oneof![1usize..40, 1_000..3_000usize],
        rounds in prop::collection::vec((1usize..5, any::<u16>()), 1..4),
    ) {
        let web = service("s", "web");
        let (at_once, one_by_one) = (Store::local(), Store::local());
        // In parts, so that some come to a table that has others.
        let numbers: Vec<usize> = (0..count).step_by(2).chain((1..count).step_by(2)).collect();
        let new = |n: usize| task(&id(n), &web, n as u64 % 5);
        for part in numbers.chunks(count.div_ceil(3)) {
            let before = (at_once.view(), answers(&at_once.view()));
            let created = at_once.update(|tx| tx.create_tasks(part.iter().map(|n| Shared::from(new(*n)))));
            block_on(created).unwrap();
            let created = one_by_one.update(|tx| part.iter().try_for_each(|n| tx.create(new(*n)).map(drop)));
            block_on(created).unwrap();
            prop_assert_eq!(answers(&at_once.view()), answers(&one_by_one.view()));
            prop_assert_eq!(&answers(&before.0), &before.1, "the version before is as it was");
        }
        for others in [vec![new(count), new(0)], vec![new(count), new(count)]] {
            let refused = at_once.update(|tx| {
                let refused = tx.create_tasks(others.iter().cloned().map(Shared::from));
                assert!(tx.is_unchanged() && tx.tasks().len() == count);
                refused
            });
            prop_assert_eq!(block_on(refused).map(drop), Err(Error::Exists));
        }
        for (step, seed) in rounds {
            let seed = usize::from(seed);
            let before = (at_once.view(), answers(&at_once.view()));
            // Some come twice, some are not there.
            let places: Vec<usize> =
                (0..count).step_by(step).chain((0..count / 2).step_by(7)).chain([count]).collect();
            let ids: Vec<String> = places.iter().map(|n| id(*n)).collect();
            let by = |at: usize| places[at].wrapping_mul(31) + seed;
            let written = block_on(at_once.update(|tx| {
                let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
                Ok::<_, Error>(tx.update_tasks(&ids, |at, task| changed(task, by(at))))
            })).unwrap().0;
            let expected = block_on(one_by_one.update(|tx| {
                let (mut seen, mut written) = (BTreeSet::new(), Vec::new());
                for (at, id) in ids.iter().enumerate() {
                    if seen.insert(id)
                        && let Some(new) = tx.tasks().get(id).and_then(|task| changed(task, by(at)))
                    {
                        tx.update(new)?;
                        written.push(at);
                    }
                }
                Ok::<_, Error>(written)
            })).unwrap().0;
            prop_assert_eq!(written, expected);
            // The same content, but for times.
            let plain = |store: &Store| {
                let mut tasks: Vec<Task> = store.view().tasks().iter().map(|t| Task::clone(t)).collect();
                tasks.iter_mut().for_each(|task| (task.meta.created_at, task.meta.updated_at) = (None, None));
                tasks
            };
            prop_assert_eq!(plain(&at_once), plain(&one_by_one));
            prop_assert_eq!(answers(&at_once.view()), answers(&one_by_one.view()));
            prop_assert_eq!(&answers(&before.0), &before.1, "the version before is as it was");
        }
    }
}
