use swarm_api::TaskState;
use swarm_api::v1::ContainerSpec;

use super::*;

fn task(id: &str, state: TaskState) -> Task {
    let status = TaskStatus { state: state as i32, ..Default::default() };
    Task { id: id.into(), node_id: "n1".into(), status, ..Default::default() }
}

fn status(state: TaskState) -> TaskStatus {
    TaskStatus { state: state as i32, ..Default::default() }
}

fn states(records: &[Record]) -> Vec<(String, TaskState)> {
    let mut states: Vec<_> = records.iter().map(|r| (r.task.id.to_string(), r.task.status.state())).collect();
    states.sort();
    states
}

struct Opened {
    db: Database,
    records: Vec<Record>,
    writer: JoinHandle<()>,
}

async fn open(path: &Path) -> Opened {
    let (db, records, writer) = Database::open(path, "n1").await.unwrap();
    Opened { db, records, writer }
}

/// The raw database. sled lets go of its lock some time after it was closed.
fn raw(path: &Path) -> sled::Db {
    let begin = std::time::Instant::now();
    loop {
        match sled::open(path) {
            Err(sled::Error::Io(_)) if begin.elapsed() < Duration::from_secs(60) => std::thread::yield_now(),
            result => return result.unwrap(),
        }
    }
}

async fn close(opened: Opened) {
    drop(opened.db);
    opened.writer.await.unwrap();
}

#[tokio::test]
async fn tasks_and_statuses_survive() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path()).await;
    assert!(first.records.is_empty());
    let tasks = vec![task("a", TaskState::Assigned).into(), task("b", TaskState::Running).into()];
    first.db.assign(tasks, vec![]).await.unwrap();
    assert!(first.db.set_status("a", &status(TaskState::Ready)).await.unwrap());
    // Assigned again: the stored status wins (108).
    first.db.assign(vec![task("a", TaskState::Assigned).into()], vec!["b".into()]).await.unwrap();
    assert!(!first.db.set_status("b", &status(TaskState::Failed)).await.unwrap());
    assert_eq!(first.db.status("a").unwrap().state(), TaskState::Ready);
    close(first).await;
    let second = open(dir.path()).await;
    assert_eq!(states(&second.records), [("a".into(), TaskState::Ready)]);
    close(second).await;
}

/// A write that was told to have failed may be on the disk all the same, and must not come to life later.
#[tokio::test]
async fn what_nobody_was_told_of_goes_when_the_files_are_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path()).await;
    let tasks = vec![task("kept", TaskState::Running).into(), task("left", TaskState::Assigned).into()];
    first.db.assign(tasks, vec![]).await.unwrap();
    close(first).await;
    // The put of one failed, and so did the removal of another; so they seemed.
    let mirror = [("kept", TaskState::Running), ("gone", TaskState::Running)];
    let mirror = mirror.map(|(id, state)| (id.to_owned(), status(state)));
    let statuses = Arc::new(Mutex::new(mirror.into_iter().collect::<HashMap<_, _>>()));
    let place = Place { path: dir.path().join(DIRECTORY), node_id: "n1".into() };
    let (disk, garbage) = place.reopen(&statuses).await.unwrap();
    assert_eq!(garbage, ["left"]);
    assert_eq!(statuses.lock().keys().collect::<Vec<_>>(), ["kept"]);

    // The next write takes it away, whatever it is about.
    let (writes, receiver) = mpsc::channel(QUEUE);
    let db = Database { writes, statuses: statuses.clone() };
    let writer = tokio::spawn(write(place, disk, receiver, statuses, garbage));
    assert!(!db.set_status("gone", &status(TaskState::Failed)).await.unwrap());
    assert!(db.set_status("kept", &status(TaskState::Complete)).await.unwrap());
    close(Opened { db, records: Vec::new(), writer }).await;
    let second = open(dir.path()).await;
    assert_eq!(states(&second.records), [("kept".into(), TaskState::Complete)]);
    close(second).await;
}

#[tokio::test]
async fn large_tasks_are_stored_in_parts_and_shrink_again() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path()).await;
    let mut large = task("a", TaskState::Assigned);
    large.annotations.name = "x".repeat(700_000);
    first.db.assign(vec![large.clone().into()], vec![]).await.unwrap();
    close(first).await;
    let second = open(dir.path()).await;
    assert_eq!(*second.records[0].task, large);
    second.db.assign(vec![task("a", TaskState::Assigned).into()], vec![]).await.unwrap();
    close(second).await;
    let db = raw(&dir.path().join(DIRECTORY));
    assert_eq!(db.scan_prefix(b"t/").count(), 1);
}

#[tokio::test]
async fn credentials_never_reach_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path()).await;
    let mut secretive = task("a", TaskState::Assigned);
    let pull_options = Some(PullOptions { registry_auth: "hunter2".into() });
    secretive.spec.runtime = Some(task_spec::Runtime::Container(ContainerSpec {
        image: "image".into(),
        pull_options,
        ..Default::default()
    }));
    first.db.assign(vec![secretive.into()], vec![]).await.unwrap();
    close(first).await;
    let bytes = std::fs::read(dir.path().join(DIRECTORY).join("db")).unwrap();
    let contains = |needle: &[u8]| bytes.windows(needle.len()).any(|w| w == needle);
    assert!(contains(b"image") && !contains(b"hunter2"));
    let second = open(dir.path()).await;
    assert!(dependencies::has_any(&second.records[0].task), "but that there were some is known");
    close(second).await;
}

#[tokio::test]
async fn damaged_records_are_dropped_and_the_rest_stays() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path()).await;
    let tasks = ["a", "b", "c", "d"].map(|id| task(id, TaskState::Running).into()).to_vec();
    first.db.assign(tasks, vec![]).await.unwrap();
    close(first).await;
    let db = raw(&dir.path().join(DIRECTORY));
    let mut value = db.get(task_key("a", 0)).unwrap().unwrap().to_vec();
    *value.last_mut().unwrap() ^= 1;
    db.insert(task_key("a", 0), value).unwrap();
    db.remove(status_key("b")).unwrap();
    db.insert(status_key("c"), b"x").unwrap();
    db.insert(b"t/strange", b"").unwrap();
    db.flush().unwrap();
    drop(db);
    let second = open(dir.path()).await;
    assert_eq!(states(&second.records), [("d".into(), TaskState::Running)]);
    second.db.assign(vec![task("a", TaskState::Assigned).into()], vec![]).await.unwrap();
    close(second).await;
    let third = open(dir.path()).await;
    let expected = [("a".into(), TaskState::Assigned), ("d".into(), TaskState::Running)];
    assert_eq!(states(&third.records), expected);
    close(third).await;
}

#[tokio::test]
async fn a_directory_that_was_another_nodes_is_not_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path()).await;
    first.db.assign(vec![task("a", TaskState::Running).into()], vec![]).await.unwrap();
    close(first).await;
    let (db, records, writer) = Database::open(dir.path(), "n2").await.unwrap();
    assert!(records.is_empty());
    close(Opened { db, records, writer }).await;
}

#[tokio::test]
async fn a_second_agent_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path()).await;
    assert!(matches!(Database::open(dir.path(), "n1").await, Err(Error::Open { .. })));
    close(first).await;
}

/// Writes for ever, and prints each status once it is acknowledged; killed by the test below.
#[tokio::test]
#[ignore = "run by another test"]
async fn victim() {
    use std::io::Write as _;
    let Ok(dir) = std::env::var("SWARM_VICTIM_DIR") else { return };
    let opened = open(Path::new(&dir)).await;
    let tasks = (0..8).map(|i| task(&format!("t{i}"), TaskState::Assigned).into()).collect();
    opened.db.assign(tasks, vec![]).await.unwrap();
    let mut writers = tokio::task::JoinSet::new();
    for i in 0..8 {
        let db = opened.db.clone();
        let first: u64 = db.status(&format!("t{i}")).unwrap().message.parse().unwrap_or(0);
        writers.spawn(async move {
            for number in first + 1.. {
                let status = TaskStatus { message: number.to_string().into(), ..status(TaskState::Running) };
                assert!(db.set_status(&format!("t{i}"), &status).await.unwrap());
                let line = format!("t{i} {number}\n");
                std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
            }
        });
    }
    writers.join_next().await.unwrap().unwrap();
}

// A process is killed while it writes, again and again: every acknowledged status is there afterwards.
#[tokio::test]
async fn acknowledged_statuses_survive_a_kill() {
    use std::io::{BufRead as _, BufReader};
    use std::process::{Command, Stdio};
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged: HashMap<String, u64> = HashMap::new();
    for round in 0..10 {
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "database::tests::victim", "--ignored", "--nocapture"])
            .env("SWARM_VICTIM_DIR", dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(victim.stdout.take().unwrap()).lines();
        let mut note = |line: &str| {
            let Some((id, number)) = line.split_once(' ') else { return false };
            let Ok(number) = number.parse::<u64>() else { return false };
            let newest = acknowledged.entry(id.to_owned()).or_default();
            *newest = number.max(*newest);
            true
        };
        let mut left = 20 + round * 37;
        while left > 0 {
            let line = lines.next().expect("the victim writes").unwrap();
            left -= u64::from(note(&line));
        }
        victim.kill().unwrap();
        victim.wait().unwrap();
        for line in lines.map_while(Result::ok) {
            note(&line); // what it still had said, all but a line cut short
        }
        let opened = open(dir.path()).await;
        for (id, number) in &acknowledged {
            let stored: u64 = opened.db.status(id).unwrap().message.parse().unwrap();
            assert!(stored >= *number, "{id}: {number} was acknowledged, {stored} is stored");
        }
        close(opened).await;
    }
    assert_eq!(acknowledged.len(), 8);
}

#[tokio::test]
async fn many_writers_share_a_sync() {
    let dir = tempfile::tempdir().unwrap();
    let opened = open(dir.path()).await;
    let tasks = (0..200).map(|i| task(&format!("t{i}"), TaskState::Assigned).into()).collect();
    opened.db.assign(tasks, vec![]).await.unwrap();
    let mut writers = tokio::task::JoinSet::new();
    for i in 0..200 {
        let db = opened.db.clone();
        writers.spawn(async move {
            for state in [TaskState::Accepted, TaskState::Ready, TaskState::Running] {
                assert!(db.set_status(&format!("t{i}"), &status(state)).await.unwrap());
                assert_eq!(db.status(&format!("t{i}")).unwrap().state(), state);
            }
        });
    }
    while let Some(done) = writers.join_next().await {
        done.unwrap();
    }
    close(opened).await;
    let again = open(dir.path()).await;
    assert!(states(&again.records).iter().all(|(_, state)| *state == TaskState::Running));
    assert_eq!(again.records.len(), 200);
    close(again).await;
}
