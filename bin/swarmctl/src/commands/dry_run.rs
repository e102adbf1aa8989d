//! `--dry-run`: what a change of a service would come to.

use swarm_api::swarmd::dry_run_request::Call;
use swarm_api::swarmd::dry_run_response::{Difference, Ending, Preemption, Range, Refusal, Replacement};
use swarm_api::swarmd::{DryRunRequest, DryRunResponse};
use swarm_api::v1::service_spec::Mode;
use swarm_api::v1::update_config::{FailureAction, UpdateOrder};
use swarm_api::v1::{ServiceSpec, UpdateConfig};
use tonic::{Code, Status};

use super::{Answer, Context, leader};
use crate::error::Result;
use crate::output::{Names, Table, is_global};
use crate::values::duration;

/// Exit code if not everything would find its place, or it can't be told.
const NOT_ALL: u8 = 3;

/// Most ranges of slots, and most nodes, that are written out.
const SHOWN: usize = 8;

/// Asks what the call would come to.
pub(super) async fn ask(context: &mut Context, call: Call) -> Result<DryRunResponse, Status> {
    let request = DryRunRequest { call: Some(call) };
    match context.client.services().dry_run(request).await {
        Ok(answer) => Ok(answer.into_inner()),
        Err(status) if status.code() == Code::Unimplemented && status.message().is_empty() => {
            let leader = leader::named(context).await;
            Err(Status::unimplemented(format!(
                "the manager that leads{leader} knows no dry runs: it is no swarmd, or too old"
            )))
        }
        Err(status) => Err(status),
    }
}

/// What is printed of the answer, for the service of this spec.
pub(super) async fn show(
    context: &mut Context,
    spec: &ServiceSpec,
    answer: DryRunResponse,
) -> Result<Answer> {
    let names = context.names().await?;
    let all = answer.refused == 0 && answer.ending() == Ending::Settled;
    Ok(Answer { text: page(spec, &answer, &names).into_bytes(), code: if all { 0 } else { NOT_ALL } })
}

fn page(spec: &ServiceSpec, answer: &DryRunResponse, names: &Names) -> String {
    let service = &spec.annotations.name;
    let head = format!(
        "Dry run of service {service}, from the state at index {}: nothing is written.\n",
        answer.index
    );
    let mut parts = vec![head];
    let mut part = |text: String| {
        if !text.is_empty() {
            parts.push(text);
        }
    };
    let is_job = matches!(spec.mode, Some(Mode::ReplicatedJob(_) | Mode::GlobalJob(_)));
    part(differences(&answer.differences, is_job));
    part(reasons("Waits", &answer.waits, names));
    part(nodes(answer, names));
    part(replacements(answer, is_global(spec), names));
    part(reasons("Refused", &answer.refusals, names));
    part(preemptions(answer, names));
    part(summary(answer));
    parts.join("\n")
}

/// Whatever changes of a job, all of it is done again.
fn differences(all: &[Difference], is_job: bool) -> String {
    let mut table = Table::list();
    table.header(&["Change", "Effect"]);
    for difference in all {
        let effect = match (difference.replaces, is_job) {
            (0, false) => "in place".to_owned(),
            (n, false) => format!("replaces {}", tasks(n)),
            (0, true) => "begins a new run".to_owned(),
            (n, true) => format!("begins a new run, replaces {}", tasks(n)),
        };
        table.line(format!("{}\t{effect}", difference.what));
    }
    if all.is_empty() { String::new() } else { table.finish() }
}

fn nodes(answer: &DryRunResponse, names: &Names) -> String {
    let mut table = Table::list();
    table.header(&["Node", "New", "Replacing", "Kept", "Stopped", "Slots of new tasks"]);
    for node in &answer.nodes {
        let name = names.node(&node.node_id);
        let (placed, replacing, kept) = (node.placed, node.replacing, node.kept);
        table.line(format!(
            "{name}\t{placed}\t{replacing}\t{kept}\t{}\t{}",
            node.stopped,
            ranges(&node.slots)
        ));
    }
    if answer.nodes.is_empty() { String::new() } else { table.finish() }
}

fn replacements(answer: &DryRunResponse, is_global: bool, names: &Names) -> String {
    if answer.replacements.is_empty() {
        return String::new();
    }
    let mut table = Table::list();
    table.header(&["Replaced", "Slot", "Node", "New Node", "After"]);
    for Replacement { task_id, slot, node_id, new_node_id, at } in &answer.replacements {
        let slot = if is_global { String::new() } else { slot.to_string() };
        let after = at.as_ref().map(duration::format).unwrap_or_default();
        let (old, new) = (names.node(node_id), names.node(new_node_id));
        table.line(format!("{task_id}\t{slot}\t{old}\t{new}\t{after}"));
    }
    let rest = answer.replaced.saturating_sub(answer.replacements.len() as u64);
    let rest = if rest == 0 { String::new() } else { format!("and {} more\n", tasks(rest)) };
    let pace = answer.pace.as_ref().map(pace).unwrap_or_default();
    format!("{pace}{}{rest}", table.finish())
}

fn pace(config: &UpdateConfig) -> String {
    let how_many = match config.parallelism {
        0 => "All tasks at once".to_owned(),
        1 => "One task at a time".to_owned(),
        n => format!("{n} tasks at a time"),
    };
    let order = match config.order() {
        UpdateOrder::StopFirst => "the old one stopped first",
        UpdateOrder::StartFirst => "the new one started first",
    };
    let failure = match config.failure_action() {
        FailureAction::Pause => "paused",
        FailureAction::Continue => "continued",
        FailureAction::Rollback => "rolled back",
    };
    let failure = match config.max_failure_ratio {
        ratio if ratio > 0.0 && config.failure_action() != FailureAction::Continue => {
            format!("{failure} when more than {ratio} of them fail")
        }
        _ => format!("{failure} on failure"),
    };
    let delay = match duration::format(&config.delay) {
        none if none == "0s" => String::new(),
        delay => format!(", {delay} between them"),
    };
    format!("{how_many}, {order}{delay}, {failure}:\n")
}

fn reasons(what: &str, all: &[Refusal], names: &Names) -> String {
    let mut table = Table::list();
    table.header(&[what, "Slots or nodes", "Why"]);
    for refusal in all {
        let mut places = vec![some_nodes(&refusal.node_ids, names), ranges(&refusal.slots)];
        places.retain(|place| !place.is_empty());
        table.line(format!("{}\t{}\t{}", tasks(refusal.tasks), places.join(","), refusal.reason));
    }
    if all.is_empty() { String::new() } else { table.finish() }
}

fn preemptions(answer: &DryRunResponse, names: &Names) -> String {
    let mut table = Table::list();
    table.header(&["Makes room", "Task", "Node", "Goes to"]);
    for Preemption { task_id, service_id, slot, node_id, new_node_id } in &answer.preemptions {
        let service = names.service(service_id);
        let name = if names.is_global(service_id) { service.to_owned() } else { format!("{service}.{slot}") };
        let new = if new_node_id.is_empty() { "(no node)" } else { names.node(new_node_id) };
        table.line(format!("{name}\t{task_id}\t{}\t{new}", names.node(node_id)));
    }
    if answer.preemptions.is_empty() { String::new() } else { table.finish() }
}

fn summary(answer: &DryRunResponse) -> String {
    let mut counts = vec![format!("{} placed", answer.placed)];
    let more = [
        (answer.replaced, "replaced"),
        (answer.kept, "kept"),
        (answer.stopped, "stopped"),
        (answer.refused, "refused"),
        (answer.waiting, "waiting for other services first"),
        (answer.preempted, "of other services preempted"),
    ];
    counts.extend(more.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")));
    let waits = match answer.waiting {
        0 => "",
        _ => "What becomes of tasks that wait is shown as if what they wait for were there.\n",
    };
    let takes = match answer.takes.as_ref().map(duration::format) {
        Some(takes) if takes != "0s" => format!("It takes at least {takes}.\n"),
        _ => String::new(),
    };
    let message = match answer.message.as_str() {
        "" => String::new(),
        message => format!("Not everything comes to its end: {message}.\n"),
    };
    format!("Tasks: {}.\n{waits}{takes}{message}", counts.join(", "))
}

fn tasks(n: u64) -> String {
    if n == 1 { "1 task".to_owned() } else { format!("{n} tasks") }
}

/// `a,b`; of many, the first, and how many more: `a,b,c,d,e,f,g,h and 92 more`.
fn some_nodes(ids: &[String], names: &Names) -> String {
    let shown: Vec<&str> = ids.iter().take(SHOWN).map(|id| names.node(id)).collect();
    match ids.len() - shown.len() {
        0 => shown.join(","),
        more => format!("{} and {more} more", shown.join(",")),
    }
}

/// `1-3,7`; of many, how many of which: `34 of 0-99`. Slots of one node often lie between those of others.
fn ranges(ranges: &[Range]) -> String {
    if let ([first, .., last], true) = (ranges, ranges.len() > SHOWN) {
        let count: u64 = ranges.iter().map(|range| range.last - range.first + 1).sum();
        return format!("{count} of {}-{}", first.first, last.last);
    }
    let texts = ranges.iter().map(|range| match range.first == range.last {
        true => range.first.to_string(),
        false => format!("{}-{}", range.first, range.last),
    });
    texts.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use swarm_api::Shared;
    use swarm_api::swarmd::dry_run_response::OnNode;
    use swarm_api::v1::Service;

    use super::*;

    fn web() -> ServiceSpec {
        let mut spec = ServiceSpec::default();
        spec.annotations.name = "web".into();
        spec
    }

    fn seconds(seconds: i64) -> prost_types::Duration {
        prost_types::Duration { seconds, nanos: 0 }
    }

    #[test]
    fn a_page_shows_what_changes_where_and_why() {
        let answer = DryRunResponse {
            index: 42,
            differences: vec![
                Difference { what: "image: a → b".into(), replaces: 1 },
                Difference { what: "labels".into(), replaces: 0 },
            ],
            pace: Some(UpdateConfig { parallelism: 1, delay: seconds(10), ..Default::default() }),
            nodes: vec![OnNode {
                node_id: "n1".into(),
                placed: 3,
                replacing: 1,
                kept: 2,
                stopped: 1,
                slots: vec![Range { first: 1, last: 1 }, Range { first: 4, last: 6 }],
            }],
            replacements: vec![Replacement {
                task_id: "t1".into(),
                slot: 1,
                node_id: "n2".into(),
                new_node_id: "n1".into(),
                at: Some(seconds(0)),
            }],
            refusals: vec![Refusal {
                reason: "no suitable node".into(),
                tasks: 2,
                slots: vec![Range { first: 7, last: 8 }],
                node_ids: vec![],
            }],
            preemptions: vec![Preemption {
                task_id: "t9".into(),
                service_id: "low".into(),
                slot: 2,
                node_id: "n1".into(),
                new_node_id: String::new(),
            }],
            placed: 3,
            replaced: 1,
            kept: 2,
            refused: 2,
            preempted: 1,
            takes: Some(seconds(20)),
            ending: Ending::Paused as i32,
            message: "the update would be paused: new tasks find no node".into(),
            ..Default::default()
        };
        let expected = "\
Dry run of service web, from the state at index 42: nothing is written.

Change        Effect
------        ------
image: a → b  replaces 1 task
labels        in place

Node  New  Replacing  Kept  Stopped  Slots of new tasks
----  ---  ---------  ----  -------  ------------------
n1    3    1          2     1        1,4-6

One task at a time, the old one stopped first, 10s between them, paused on failure:
Replaced  Slot  Node  New Node  After
--------  ----  ----  --------  -----
t1        1     n2    n1        0s

Refused  Slots or nodes  Why
-------  --------------  ---
2 tasks  7-8             no suitable node

Makes room  Task  Node  Goes to
----------  ----  ----  -------
low.2       t9    n1    (no node)

Tasks: 3 placed, 1 replaced, 2 kept, 2 refused, 1 of other services preempted.
It takes at least 20s.
Not everything comes to its end: the update would be paused: new tasks find no node.
";
        assert_eq!(page(&web(), &answer, &Names::default()), expected);
    }

    #[test]
    fn a_pace_says_how_many_may_fail() {
        let config = UpdateConfig { parallelism: 2, max_failure_ratio: 0.25, ..Default::default() };
        let text = "2 tasks at a time, the old one stopped first, paused when more than 0.25 of them fail:\n";
        assert_eq!(pace(&config), text);
        let failure_action = FailureAction::Continue as i32;
        assert!(pace(&UpdateConfig { failure_action, ..config }).ends_with(", continued on failure:\n"));
    }

    #[test]
    fn many_slots_are_told_by_their_number_and_range() {
        let every = |step: u64, slots: u64| -> Vec<Range> {
            (0..slots).map(|slot| Range { first: slot * step, last: slot * step }).collect()
        };
        assert_eq!(ranges(&[]), "");
        assert_eq!(ranges(&[Range { first: 0, last: 99 }]), "0-99");
        assert_eq!(ranges(&every(3, 8)), "0,3,6,9,12,15,18,21");
        assert_eq!(ranges(&every(3, 34)), "34 of 0-99");
        let pairs: Vec<Range> = every(5, 20).iter().map(|r| Range { last: r.first + 1, ..*r }).collect();
        assert_eq!(ranges(&pairs), "40 of 0-96");
    }

    #[test]
    fn a_dry_run_of_a_large_job_fits_on_a_screen() {
        let third = |n: u64| (0..33).map(move |slot| Range { first: slot * 3 + n, last: slot * 3 + n });
        let node = |id: &str, n| OnNode {
            node_id: id.into(),
            placed: 33,
            slots: third(n).collect(),
            ..Default::default()
        };
        let refused = Refusal {
            reason: "no suitable node".into(),
            tasks: 100,
            slots: vec![Range { first: 99, last: 198 }],
            node_ids: vec![],
        };
        let nodes = vec![node("n1", 0), node("n2", 1), node("n3", 2)];
        let answer = DryRunResponse {
            index: 7,
            nodes,
            refusals: vec![refused],
            placed: 99,
            refused: 100,
            ..Default::default()
        };
        let spec = ServiceSpec { mode: Some(Mode::ReplicatedJob(Default::default())), ..web() };
        let expected = "\
Dry run of service web, from the state at index 7: nothing is written.

Node  New  Replacing  Kept  Stopped  Slots of new tasks
----  ---  ---------  ----  -------  ------------------
n1    33   0          0     0        33 of 0-96
n2    33   0          0     0        33 of 1-97
n3    33   0          0     0        33 of 2-98

Refused    Slots or nodes  Why
-------    --------------  ---
100 tasks  99-198          no suitable node

Tasks: 99 placed, 100 refused.
";
        assert_eq!(page(&spec, &answer, &Names::default()), expected);
    }

    #[test]
    fn every_change_of_a_job_begins_a_new_run() {
        let differences = vec![
            Difference { what: "labels".into(), replaces: 0 },
            Difference { what: "arguments".into(), replaces: 1 },
        ];
        let answer = DryRunResponse { index: 7, differences, placed: 2, ..Default::default() };
        let spec = ServiceSpec { mode: Some(Mode::ReplicatedJob(Default::default())), ..web() };
        let expected = "\
Dry run of service web, from the state at index 7: nothing is written.

Change     Effect
------     ------
labels     begins a new run
arguments  begins a new run, replaces 1 task

Tasks: 2 placed.
";
        assert_eq!(page(&spec, &answer, &Names::default()), expected);
    }

    #[test]
    fn the_first_slot_of_a_job_is_shown_and_global_services_have_none() {
        let replacement = Replacement { task_id: "t1".into(), node_id: "n1".into(), ..Default::default() };
        let preempted = |service: &str| Preemption {
            task_id: "t9".into(),
            service_id: service.into(),
            node_id: "n1".into(),
            new_node_id: "n2".into(),
            ..Default::default()
        };
        let answer = DryRunResponse {
            replacements: vec![replacement],
            replaced: 1,
            preemptions: vec![preempted("job"), preempted("all")],
            ..Default::default()
        };
        let service = |id: &str, mode| {
            let mut service = Service { id: id.into(), ..Default::default() };
            service.spec.mode = Some(mode);
            Shared::new(service)
        };
        let services = [
            service("job", Mode::ReplicatedJob(Default::default())),
            service("all", Mode::Global(Default::default())),
        ];
        let names = Names::new(&[], &services);
        let job = ServiceSpec { mode: Some(Mode::ReplicatedJob(Default::default())), ..web() };
        let text = page(&job, &answer, &names);
        assert!(text.contains("\nt1        0     n1 "), "{text}");
        assert!(text.contains("\njob.0 ") && text.contains("\nall "), "{text}");
        let global = ServiceSpec { mode: Some(Mode::Global(Default::default())), ..web() };
        let text = page(&global, &answer, &names);
        assert!(text.contains("\nt1              n1 "), "{text}");
    }

    #[test]
    fn many_nodes_are_told_by_the_first_and_their_number() {
        let ids = |n: usize| (1..=n).map(|n| format!("n{n}")).collect::<Vec<_>>();
        let names = Names::default();
        assert_eq!(some_nodes(&[], &names), "");
        assert_eq!(some_nodes(&ids(8), &names), "n1,n2,n3,n4,n5,n6,n7,n8");
        let refused = Refusal {
            reason: "no suitable node".into(),
            tasks: 100,
            node_ids: ids(100),
            ..Default::default()
        };
        let answer = DryRunResponse { refusals: vec![refused], refused: 100, ..Default::default() };
        let text = page(&web(), &answer, &names);
        assert!(
            text.contains("\n100 tasks  n1,n2,n3,n4,n5,n6,n7,n8 and 92 more  no suitable node\n"),
            "{text}"
        );
    }

    #[test]
    fn what_is_empty_is_left_out() {
        let answer = DryRunResponse { index: 7, placed: 0, ..Default::default() };
        assert_eq!(
            page(&web(), &answer, &Names::default()),
            "Dry run of service web, from the state at index 7: nothing is written.\n\nTasks: 0 placed.\n"
        );
    }

    #[test]
    fn those_who_wait_for_other_services_are_shown_and_are_not_refused() {
        let answer = DryRunResponse {
            index: 7,
            placed: 3,
            waiting: 3,
            waits: vec![Refusal {
                reason: "waiting for service db (0 of 1 task healthy)".into(),
                tasks: 3,
                slots: vec![Range { first: 1, last: 3 }],
                node_ids: vec![],
            }],
            ..Default::default()
        };
        assert_eq!(
            page(&web(), &answer, &Names::default()),
            "Dry run of service web, from the state at index 7: nothing is written.

Waits    Slots or nodes  Why
-----    --------------  ---
3 tasks  1-3             waiting for service db (0 of 1 task healthy)

Tasks: 3 placed, 3 waiting for other services first.
What becomes of tasks that wait is shown as if what they wait for were there.
"
        );
    }
}
