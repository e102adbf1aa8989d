//! Random histories of transactions against a model that is a list of objects, searched from end to end.
#![allow(clippy::manual_is_multiple_of)] // remainders beside others read better alike

use futures::executor::block_on;
use proptest::prelude::*;
use swarm_api::extensions::{DEPENDS_ON, StartOrder};
use swarm_api::v1::*;
use swarm_api::{Kind, Object, StoreObject, Text, naming};
use swarm_store::{Error, Event, Received, Store, Tables, Tx, diff};

/// What is done to one object; the numbers pick names, references and states from small pools, so that they
/// collide.
#[derive(Debug, Clone)]
struct Op {
    kind: Kind,
    id: u8,
    what: What,
    name: u8,
    x: u8,
    y: u8,
    z: u8,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum What {
    Create,
    Update,
    UpdateStale,
    Remove,
}

/// Some ids begin alike over more bytes than the index looks at.
fn id(n: u8) -> String {
    match n % 3 {
        0 => format!("i{n}"),
        1 => format!("the-same-beginning-{n}"),
        _ => format!("the-same-beg{n}"),
    }
}

fn name(n: u8) -> String {
    ["web", "Web", "web.1", "api", "API.x", "w", "", "webber", "émile", "task"][n as usize % 10].to_owned()
}

fn reference(n: u8) -> String {
    format!("ref{}", n % 4)
}

fn references(x: u8, n: u8) -> impl Iterator<Item = String> {
    (0..x % 3).map(move |k| reference(n + k))
}

fn port(n: u8) -> PortConfig {
    PortConfig { published_port: u32::from(n % 5), protocol: i32::from(n % 2), ..Default::default() }
}

fn annotations(op: &Op) -> Annotations {
    let indices = (0..op.z % 3)
        .map(|n| IndexEntry { key: format!("k{}", op.x % 2), val: format!("v{}{}", op.y % 3, n / 2) })
        .collect();
    Annotations { name: name(op.name), indices, ..Default::default() }
}

fn task_spec(op: &Op) -> TaskSpec {
    let container = ContainerSpec {
        secrets: references(op.y, op.x)
            .map(|secret_id| SecretReference { secret_id, ..Default::default() })
            .collect(),
        configs: references(op.z, op.x)
            .map(|config_id| ConfigReference { config_id, ..Default::default() })
            .collect(),
        ..Default::default()
    };
    TaskSpec {
        networks: references(op.x, op.y)
            .map(|target| NetworkAttachmentConfig { target, ..Default::default() })
            .collect(),
        runtime: match op.z % 4 {
            0 => None,
            1 => Some(task_spec::Runtime::Attachment(Default::default())),
            2 => Some(task_spec::Runtime::Generic(GenericRuntimeSpec {
                kind: "Process".to_owned(),
                ..Default::default()
            })),
            _ => Some(task_spec::Runtime::Container(container)),
        },
        ..Default::default()
    }
}

fn build(op: &Op) -> Object {
    let id = id(op.id);
    let annotations = annotations(op);
    match op.kind {
        Kind::Node => {
            let mut node = Node { id, role: i32::from(op.x % 2), ..Default::default() };
            node.spec.annotations = annotations.into();
            node.spec.membership = i32::from(op.y % 2);
            if op.z % 2 == 0 {
                node.description.get_or_insert_default().hostname = name(op.name);
            }
            node.into()
        }
        Kind::Service => {
            let mut service = Service { id, ..Default::default() };
            service.spec.annotations = annotations.into();
            service.spec.task = task_spec(op).into();
            if op.y % 3 == 0 {
                let awaited = name(op.x);
                let value =
                    if awaited.is_empty() { "not a list".to_owned() } else { format!("{awaited}:running") };
                service.spec.annotations.labels.insert(DEPENDS_ON.to_owned(), value);
            }
            let ports = |n: u8| (0..n % 3).map(move |k| port(n + k)).collect();
            service.spec.endpoint = Some(EndpointSpec { ports: ports(op.x), ..Default::default() });
            service.endpoint = Some(Endpoint { ports: ports(op.z), ..Default::default() }.into());
            if op.name % 2 == 0 {
                #[allow(deprecated)]
                service
                    .spec
                    .networks
                    .push(NetworkAttachmentConfig { target: reference(op.z), ..Default::default() });
            }
            service.into()
        }
        Kind::Task => {
            let mut annotations = annotations;
            let service = Annotations { name: name(op.y), ..Default::default() };
            if op.name % 3 > 0 {
                annotations.name.clear();
            }
            Task {
                id: id.into(),
                annotations: annotations.into(),
                service_annotations: service.into(),
                service_id: if op.y % 5 == 0 { Text::default() } else { reference(op.y).into() },
                node_id: if op.x % 5 == 0 { Text::default() } else { reference(op.x).into() },
                slot: u64::from(op.z % 3),
                desired_state: i32::from(op.x % 3) * 64,
                status: TaskStatus { state: i32::from(op.y % 3) * 64, ..Default::default() },
                spec: task_spec(op).into(),
                volumes: references(op.x, op.z)
                    .map(|id| VolumeAttachment { id, ..Default::default() })
                    .collect(),
                ..Default::default()
            }
            .into()
        }
        Kind::Network => {
            let mut network = Network { id, ..Default::default() };
            network.spec.annotations = annotations.into();
            network.into()
        }
        Kind::Cluster => {
            let mut cluster = Cluster { id, ..Default::default() };
            cluster.spec.annotations = annotations.into();
            cluster.into()
        }
        Kind::Secret => {
            let mut secret = Secret { id, ..Default::default() };
            secret.spec.annotations = annotations.into();
            secret.into()
        }
        Kind::Config => {
            let mut config = Config { id, ..Default::default() };
            config.spec.annotations = annotations.into();
            config.into()
        }
        Kind::Resource => {
            Resource { id, annotations: annotations.into(), kind: name(op.x), ..Default::default() }.into()
        }
        Kind::Extension => Extension { id, annotations: annotations.into(), ..Default::default() }.into(),
        Kind::Volume => {
            let mut volume = Volume { id, ..Default::default() };
            volume.spec.annotations = annotations.into();
            volume.spec.group = if op.x % 3 == 0 { String::new() } else { reference(op.x) };
            if op.y % 2 == 0 {
                volume.spec.driver = Some(Driver { name: reference(op.z), ..Default::default() });
            }
            volume.into()
        }
    }
}

/// The model: objects in no order.
#[derive(Debug, Clone, Default)]
struct Model(Vec<Object>);

fn name_of(object: &Object) -> Option<String> {
    let name = match object {
        Object::Node(node) => node.description.as_ref()?.hostname.clone(),
        Object::Task(task) => naming::task_name(task),
        other => other.annotations().name.clone(),
    };
    Some(name.to_lowercase())
}

impl Model {
    fn find(&self, kind: Kind, id: &str) -> Option<usize> {
        self.0.iter().position(|o| o.kind() == kind && o.id() == id)
    }

    fn named(&self, kind: Kind, name: &str) -> impl Iterator<Item = &Object> {
        let name = name.to_lowercase();
        self.0.iter().filter(move |o| o.kind() == kind && name_of(o).as_deref() == Some(&name))
    }

    fn taken(&self, object: &Object) -> bool {
        !matches!(object.kind(), Kind::Node | Kind::Task)
            && self.named(object.kind(), &object.annotations().name).any(|other| other.id() != object.id())
    }

    fn unregistered(&self, object: &Object) -> bool {
        match object {
            Object::Resource(resource) => self.named(Kind::Extension, &resource.kind).next().is_none(),
            _ => false,
        }
    }

    fn create(&mut self, object: Object) -> Result<(), Error> {
        if self.unregistered(&object) {
            return Err(Error::UnregisteredKind);
        }
        if object.kind() == Kind::Extension
            && Kind::ALL.iter().any(|kind| kind.name() == object.annotations().name)
        {
            return Err(Error::NameConflict);
        }
        if self.taken(&object) {
            return Err(Error::NameConflict);
        }
        if self.find(object.kind(), object.id()).is_some() {
            return Err(Error::Exists);
        }
        self.0.push(object);
        Ok(())
    }

    fn update(&mut self, object: Object, stale: bool) -> Result<(), Error> {
        if self.taken(&object) {
            return Err(Error::NameConflict);
        }
        let at = self.find(object.kind(), object.id()).ok_or(Error::NotExist)?;
        if stale {
            return Err(Error::Sequence);
        }
        if self.unregistered(&object) {
            return Err(Error::UnregisteredKind);
        }
        if object.kind() == Kind::Extension {
            return Err(Error::ImmutableExtension);
        }
        self.0[at] = object;
        Ok(())
    }

    fn remove(&mut self, kind: Kind, id: &str) -> Result<(), Error> {
        let at = self.find(kind, id);
        if let (Kind::Extension, Some(at)) = (kind, at) {
            let name = &self.0[at].annotations().name;
            let mut resources = self.0.iter().filter_map(|o| match o {
                Object::Resource(r) => Some(r),
                _ => None,
            });
            if resources.any(|r| r.kind == *name) {
                return Err(Error::ExtensionInUse);
            }
        }
        self.0.remove(at.ok_or(Error::NotExist)?);
        Ok(())
    }

    /// Ids that satisfy a condition, in order.
    fn ids(&self, kind: Kind, mut wanted: impl FnMut(&Object) -> bool) -> Vec<String> {
        let mut ids: Vec<String> =
            self.0.iter().filter(|o| o.kind() == kind && wanted(o)).map(|o| o.id().to_owned()).collect();
        ids.sort();
        ids
    }
}

fn with_meta(mut object: Object, meta: Meta) -> Object {
    macro_rules! set {
        ($($kind:ident),*) => { match &mut object { $(Object::$kind(o) => o.meta = meta),* } };
    }
    set!(Node, Service, Task, Network, Cluster, Secret, Resource, Extension, Config, Volume);
    object
}

/// Does it, and gives back what is stored now.
fn run(tx: &mut Tx, op: &Op) -> Result<Option<Object>, Error> {
    let object = build(op);
    macro_rules! each {
        ($($kind:ident),*) => {
            match object {
                $(Object::$kind(mut object) => match op.what {
                    What::Create => tx.create(object).map(|o| Some($kind::into_object(o))),
                    What::Update | What::UpdateStale => {
                        if let Some(stored) = tx.get::<$kind>(&object.id) {
                            object.meta = stored.meta.clone();
                        }
                        if op.what == What::UpdateStale {
                            object.meta.version.index += 1;
                        }
                        tx.update(object).map(|o| Some($kind::into_object(o)))
                    }
                    What::Remove => tx.remove::<$kind>(&object.id).map(|_| None),
                },)*
            }
        };
    }
    each!(Node, Service, Task, Network, Cluster, Secret, Resource, Extension, Config, Volume)
}

fn run_model(model: &mut Model, op: &Op, stored: Option<&Object>) -> Result<(), Error> {
    // Versions and times are the store's to choose.
    let object = with_meta(build(op), stored.map(|o| *o.meta()).unwrap_or_default());
    match op.what {
        What::Create => model.create(object),
        What::Update => model.update(object, false),
        What::UpdateStale => model.update(object, true),
        What::Remove => model.remove(op.kind, &id(op.id)),
    }
}

fn ids<'a, T: StoreObject>(objects: impl Iterator<Item = &'a swarm_api::Shared<T>>) -> Vec<String> {
    objects.map(|o| StoreObject::id(&**o).to_owned()).collect()
}

/// Asks every index for everything.
fn check(tables: &Tables, model: &Model) {
    macro_rules! common {
        ($($table:ident: $kind:ident),*) => {$({
            let (table, kind) = (tables.$table(), Kind::$kind);
            assert_eq!(ids(table.iter()), model.ids(kind, |_| true));
            assert_eq!(table.len(), model.ids(kind, |_| true).len());
            assert_eq!(table.is_empty(), table.len() == 0);
            for n in 0..18 {
                let stored = model.find(kind, &id(n)).map(|at| &model.0[at]);
                let found = table.get(&id(n)).map(|o| $kind::into_object(o.clone()));
                assert_eq!(found.as_ref(), stored);
            }
            for prefix in ["", "i", "i1", "the-same-beg", "the-same-beginning-1", "thf", "x"] {
                assert_eq!(ids(table.by_id_prefix(prefix)), model.ids(kind, |o| o.id().starts_with(prefix)));
            }
            for n in 0..10 {
                let name = name(n).to_uppercase();
                let lower = name.to_lowercase();
                assert_eq!(ids(table.by_name(&name)), model.ids(kind, |o| name_of(o).as_deref() == Some(&lower)));
            }
            for prefix in ["", "W", "web", "web.", "web.1", "web.1.", "Web.1.the-same", "api.X", "É", ".", "z"] {
                let lower = prefix.to_lowercase();
                let mut expected: Vec<_> = model
                    .ids(kind, |o| name_of(o).is_some_and(|n| n.starts_with(&lower)))
                    .into_iter()
                    .map(|id| (model.find(kind, &id).and_then(|at| name_of(&model.0[at])), id))
                    .collect();
                expected.sort();
                let expected: Vec<_> = expected.into_iter().map(|(_, id)| id).collect();
                assert_eq!(ids(table.by_name_prefix(prefix)), expected, "{prefix}");
            }
            for key in ["k0", "k1", "k2"] {
                let has = |o: &Object, is: &dyn Fn(&str) -> bool| {
                    o.annotations().indices.iter().any(|e| e.key == key && is(&e.val))
                };
                for value in ["v00", "v10", "v20", "v"] {
                    let expected = model.ids(kind, |o| has(o, &|v| v == value));
                    assert_eq!(ids(table.by_custom(key, value)), expected);
                }
                for prefix in ["", "v", "v1", "x"] {
                    let mut found = ids(table.by_custom_prefix(key, prefix));
                    found.sort();
                    found.dedup();
                    assert_eq!(found, model.ids(kind, |o| has(o, &|v| v.starts_with(prefix))));
                }
            }
        })*};
    }
    common!(
        nodes: Node, services: Service, tasks: Task, networks: Network, clusters: Cluster, secrets: Secret,
        resources: Resource, extensions: Extension, configs: Config, volumes: Volume
    );
    check_tasks(tables, model);
    check_others(tables, model);
}

fn secrets(spec: &TaskSpec) -> Vec<&str> {
    match &spec.runtime {
        Some(task_spec::Runtime::Container(c)) => c.secrets.iter().map(|s| &*s.secret_id).collect(),
        _ => Vec::new(),
    }
}

fn configs(spec: &TaskSpec) -> Vec<&str> {
    match &spec.runtime {
        Some(task_spec::Runtime::Container(c)) => c.configs.iter().map(|s| &*s.config_id).collect(),
        _ => Vec::new(),
    }
}

fn pool() -> impl Iterator<Item = String> {
    (0..4).map(reference).chain([String::new()])
}

fn check_tasks(tables: &Tables, model: &Model) {
    let tasks = tables.tasks();
    let expect = |wanted: &dyn Fn(&Task) -> bool| {
        model.ids(Kind::Task, |o| matches!(o, Object::Task(task) if wanted(task)))
    };
    for r in pool() {
        assert_eq!(ids(tasks.by_service(&r)), expect(&|t| t.service_id == r));
        assert_eq!(ids(tasks.by_node(&r)), expect(&|t| t.node_id == r));
        for slot in 0..4 {
            assert_eq!(ids(tasks.by_slot(&r, slot)), expect(&|t| t.service_id == r && t.slot == slot));
        }
        assert_eq!(ids(tasks.by_network(&r)), expect(&|t| t.spec.networks.iter().any(|n| n.target == r)));
        assert_eq!(ids(tasks.by_secret(&r)), expect(&|t| secrets(&t.spec).contains(&&*r)));
        assert_eq!(ids(tasks.by_config(&r)), expect(&|t| configs(&t.spec).contains(&&*r)));
        assert_eq!(ids(tasks.by_volume(&r)), expect(&|t| t.volumes.iter().any(|v| v.id == r)));
    }
    for state in [TaskState::New, TaskState::Pending, TaskState::Assigned, TaskState::Running] {
        assert_eq!(ids(tasks.by_desired_state(state)), expect(&|t| t.desired_state == state as i32));
        assert_eq!(ids(tasks.by_observed_state(state)), expect(&|t| t.status.state == state as i32));
    }
    for runtime in ["container", "attachment", "process", "Process"] {
        let lower = runtime.to_lowercase();
        let has = |t: &Task| naming::runtime(t.spec.runtime.as_ref()).as_deref() == Some(&lower);
        assert_eq!(ids(tasks.by_runtime(runtime)), expect(&has));
    }
}

fn check_others(tables: &Tables, model: &Model) {
    let services = |wanted: &dyn Fn(&Service) -> bool| {
        model.ids(Kind::Service, |o| matches!(o, Object::Service(service) if wanted(service)))
    };
    let volumes = |wanted: &dyn Fn(&Volume) -> bool| {
        model.ids(Kind::Volume, |o| matches!(o, Object::Volume(volume) if wanted(volume)))
    };
    for r in pool() {
        let table = tables.services();
        #[allow(deprecated)]
        let networks = services(&|s| {
            let task = &s.spec.task.networks;
            let networks = if task.is_empty() { &s.spec.networks } else { task };
            networks.iter().any(|n| n.target == r)
        });
        assert_eq!(ids(table.by_network(&r)), networks);
        assert_eq!(ids(table.by_secret(&r)), services(&|s| secrets(&s.spec.task).contains(&&*r)));
        assert_eq!(ids(table.by_config(&r)), services(&|s| configs(&s.spec.task).contains(&&*r)));
        assert_eq!(ids(tables.volumes().by_group(&r)), volumes(&|v| v.spec.group == r));
        let driver = volumes(&|v| v.spec.driver.as_ref().is_some_and(|d| d.name == r));
        assert_eq!(ids(tables.volumes().by_driver(&r)), driver);
    }
    for n in 0..10 {
        let awaited = name(n).to_lowercase();
        let waits = |s: &Service| {
            let order = StartOrder::read(&s.spec.annotations.labels).unwrap_or_default().0;
            order.iter().any(|dependency| dependency.service.to_lowercase() == awaited)
        };
        assert_eq!(ids(tables.services().by_awaited(&name(n))), services(&waits));
    }
    for port in 1..5 {
        let publishes = |s: &Service| {
            let wanted = s.spec.endpoint.iter().flat_map(|e| &e.ports);
            wanted.chain(s.endpoint.iter().flat_map(|e| &e.ports)).any(|p| p.published_port == port)
        };
        assert_eq!(ids(tables.services().by_published_port(port)), services(&publishes));
    }
    for runtime in ["container", "process"] {
        let has = |s: &Service| naming::runtime(s.spec.task.runtime.as_ref()).as_deref() == Some(runtime);
        assert_eq!(ids(tables.services().by_runtime(runtime)), services(&has));
    }
    let nodes = |wanted: &dyn Fn(&Node) -> bool| {
        model.ids(Kind::Node, |o| matches!(o, Object::Node(node) if wanted(node)))
    };
    for (role, membership) in [
        (NodeRole::Worker, node_spec::Membership::Pending),
        (NodeRole::Manager, node_spec::Membership::Accepted),
    ] {
        assert_eq!(ids(tables.nodes().by_role(role)), nodes(&|n| n.role == role as i32));
        let members = nodes(&|n| n.spec.membership == membership as i32);
        assert_eq!(ids(tables.nodes().by_membership(membership)), members);
    }
    for n in 0..10 {
        let kind = name(n);
        let expected = model.ids(Kind::Resource, |o| matches!(o, Object::Resource(r) if r.kind == kind));
        assert_eq!(ids(tables.resources().by_kind(&kind)), expected);
    }
}

fn op() -> impl Strategy<Value = Op> {
    let what = prop_oneof![
        4 => Just(What::Create),
        4 => Just(What::Update),
        1 => Just(What::UpdateStale),
        2 => Just(What::Remove),
    ];
    let kind = prop_oneof![3 => Just(Kind::Task), 1 => Just(Kind::Extension), 8 => prop::sample::select(&Kind::ALL[..])];
    (kind, 0u8..18, what, 0u8..10, any::<u8>(), any::<u8>(), any::<u8>()).prop_map(
        |(kind, id, what, name, x, y, z)| Op { kind, id, what, name, x: x % 60, y: y % 60, z: z % 60 },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..Default::default() })]

    #[test]
    fn every_index_answers_like_a_list_of_objects(
        history in prop::collection::vec((prop::collection::vec(op(), 1..12), prop::bool::weighted(0.2)), 1..25),
    ) {
        let store = Store::local();
        let mut model = Model::default();
        let (first, mut commits) = store.view_and_subscribe();
        for (ops, fails) in &history {
            let mut next = model.clone();
            let result = block_on(store.update(|tx| {
                next = model.clone();
                for op in ops {
                    // A change that fails leaves the rest of its transaction as it was.
                    let result = run(tx, op);
                    let expected = run_model(&mut next, op, result.as_ref().ok().and_then(Option::as_ref));
                    assert_eq!(result.map(drop), expected, "{op:?}");
                }
                if *fails { Err(Error::NotExist) } else { Ok(()) }
            }));
            prop_assert_eq!(result.is_err(), *fails);
            if !fails {
                model = next;
            }
        }
        let view = store.view();
        check(&view, &model);

        let restored = Tables::from_snapshot(view.to_snapshot()).unwrap();
        check(&restored, &model);
        prop_assert_eq!(diff(&view, &restored), vec![]);

        let mut replayed = first.to_tables();
        while let Some(Received::Commit(commit)) = commits.try_next() {
            let before = replayed.clone();
            for event in &commit.events {
                // Events carry what was there before.
                let there = replayed.object(event.kind(), event.id());
                prop_assert_eq!(event.old(), there.as_ref());
                replayed.replay(std::slice::from_ref(event));
            }
            prop_assert!(diff(&replayed, &commit.view).is_empty());
            let mut by_difference = before.clone();
            by_difference.replay(&diff(&before, &commit.view));
            prop_assert!(diff(&by_difference, &commit.view).is_empty());
        }
        check(&replayed, &model);

        let events = diff(&Tables::default(), &view);
        prop_assert!(events.iter().all(|event| matches!(event, Event::Created(_))));
        prop_assert_eq!(events.len(), model.0.len());
        let mut built = Tables::default();
        built.replay(&events);
        check(&built, &model);
        built.replay(&diff(&built, &Tables::default()));
        check(&built, &Model::default());
    }
}
