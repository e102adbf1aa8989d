//! Properties that must hold after any history, refused and lost decisions included.

mod checks;
mod cluster;
mod costs;
mod ops;

use proptest::prelude::*;
use swarm_api::Shared;
use swarm_api::v1::{Node, Task, node_status};

pub(crate) use cluster::Cluster;
pub(crate) use ops::Op;

use crate::Scheduler;

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, max_shrink_iters: 20_000, ..Default::default() })]

    #[test]
    fn any_history_leaves_room_accounts_and_reasons_right(
        ops in prop::collection::vec(ops::op(), 1..140),
        most in prop_oneof![Just(1usize), Just(3), Just(1000)],
    ) {
        let mut cluster = Cluster::with(Scheduler::with_most(most));
        cluster.step(&Op::Lead);
        for op in &ops {
            cluster.step(op);
        }
        cluster.step(&Op::Turn { lose: 0 });
    }

    #[test]
    fn equal_nodes_have_equal_shares_within_one(nodes in 1..9u8, counts in prop::collection::vec((0..3u8, 1..20u8), 1..8)) {
        let mut cluster = Cluster::new();
        for _ in 0..nodes {
            let id = cluster.id("node");
            let mut node = Node { id, ..Default::default() };
            node.status.state = node_status::State::Ready as i32;
            cluster.insert(node);
        }
        cluster.step(&Op::Lead);
        for (service, count) in counts {
            let service = cluster.service(service);
            for _ in 0..count {
                let mut task = cluster.task(service.clone(), 3);
                task.spec = Shared::default();
                task.endpoint = None;
                cluster.insert(task);
            }
            cluster.turn(0);
            let shares = |of: &dyn Fn(&Task) -> bool| -> Vec<usize> {
                let on = |n: &Shared<Node>| cluster.tables.tasks().by_node(&n.id).filter(|t| of(t)).count();
                cluster.tables.nodes().iter().map(on).collect()
            };
            let shares = shares(&|t| t.service_id == service);
            prop_assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1, "{shares:?}");
        }
    }
}
