//! What tasks use, for people and for programs.

use serde_json::{Value, json};
use swarm_api::duration::to_std;
use swarm_api::swarmd::TaskStats;

use super::Table;
use crate::values::size;

/// Characters of a task's id that are shown to people.
const SHOWN: usize = 12;
const NOTHING: &str = "-";

/// What is known of a task.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Row {
    pub(crate) task_id: String,
    pub(crate) task: String,
    pub(crate) node_id: String,
    pub(crate) node: String,
    /// Why there are no figures; empty if there are.
    pub(crate) error: String,
    last: Option<TaskStats>,
    /// Share of one processor between the last two figures, in percent.
    cpu: Option<f64>,
    figures: u64,
}

impl Row {
    /// Takes the next figures.
    pub(crate) fn take(&mut self, stats: TaskStats) {
        self.error.clone_from(&stats.error);
        let before = self.last.as_ref();
        let time = |stats: &TaskStats| Some(to_std(stats.at.as_ref()?).as_nanos());
        self.cpu = before.and_then(|before| {
            // A counter that went back belongs to something else.
            let used = stats.cpu_nanos?.checked_sub(before.cpu_nanos?)?;
            let time = time(&stats)?.checked_sub(time(before)?).filter(|time| *time > 0)?;
            Some(used as f64 / time as f64 * 100.0)
        });
        self.figures += 1;
        self.last = Some(stats);
    }

    /// All figures are there, or won't come.
    pub(crate) fn is_complete(&self) -> bool {
        self.figures >= 2 || !self.error.is_empty()
    }

    /// Share of the limit, in percent.
    fn memory_share(&self) -> Option<f64> {
        let last = self.last.as_ref()?;
        let (used, limit) = (last.memory_bytes?, last.memory_limit.filter(|limit| *limit > 0)?);
        Some(used as f64 / limit as f64 * 100.0)
    }
}

/// A table with a line for each task.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut table = Table::list();
    let errors = rows.iter().any(|row| !row.error.is_empty());
    let mut columns = vec![
        "Task ID",
        "Task",
        "Node",
        "CPU",
        "Memory / Limit",
        "Memory",
        "Received / Sent",
        "Read / Written",
        "PIDs",
    ];
    columns.extend(errors.then_some("Error"));
    table.header(&columns);
    for row in rows {
        let stats = row.last.clone().unwrap_or_default();
        let mut cells = vec![
            row.task_id.chars().take(SHOWN).collect(),
            row.task.clone(),
            row.node.clone(),
            percent(row.cpu),
            format!("{} / {}", bytes(stats.memory_bytes), bytes(stats.memory_limit)),
            percent(row.memory_share()),
            format!("{} / {}", bytes(stats.received_bytes), bytes(stats.sent_bytes)),
            format!("{} / {}", bytes(stats.read_bytes), bytes(stats.written_bytes)),
            stats.pids.map_or_else(|| NOTHING.to_owned(), |pids| pids.to_string()),
        ];
        cells.extend(errors.then(|| row.error.clone()));
        table.line(cells.join("\t"));
    }
    table.finish()
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| NOTHING.to_owned(), |share| format!("{share:.1}%"))
}

fn bytes(count: Option<u64>) -> String {
    count.map_or_else(|| NOTHING.to_owned(), |count| size::format(i64::try_from(count).unwrap_or(i64::MAX)))
}

/// A JSON object for each task, in a line of its own. What is not known is null.
pub(crate) fn lines(rows: &[Row]) -> String {
    let line = |row: &Row| {
        let stats = row.last.clone().unwrap_or_default();
        // One decimal more than people see.
        let rounded = |share: Option<f64>| share.map(|share| (share * 100.0).round() / 100.0);
        let error = (!row.error.is_empty()).then_some(&row.error);
        let value: Value = json!({
            "task_id": row.task_id,
            "task": row.task,
            "node_id": row.node_id,
            "node": row.node,
            "cpu_percent": rounded(row.cpu),
            "cpu_nanos": stats.cpu_nanos,
            "memory_bytes": stats.memory_bytes,
            "memory_limit_bytes": stats.memory_limit,
            "memory_percent": rounded(row.memory_share()),
            "network_received_bytes": stats.received_bytes,
            "network_sent_bytes": stats.sent_bytes,
            "disk_read_bytes": stats.read_bytes,
            "disk_written_bytes": stats.written_bytes,
            "pids": stats.pids,
            "error": error,
        });
        format!("{value}\n")
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(seconds: i64, cpu: u64) -> TaskStats {
        TaskStats {
            at: Some(prost_types::Duration { seconds, nanos: 0 }),
            cpu_nanos: Some(cpu),
            memory_bytes: Some(1 << 20),
            memory_limit: Some(4 << 20),
            read_bytes: Some(5),
            written_bytes: Some(2048),
            pids: Some(3),
            ..Default::default()
        }
    }

    fn row() -> Row {
        Row {
            task_id: "0123456789abcdef".into(),
            task: "web.1".into(),
            node: "w".into(),
            ..Default::default()
        }
    }

    #[test]
    fn the_share_of_a_processor_is_what_was_used_between_two_figures() {
        let mut row = row();
        row.take(sample(10, 1_000_000_000));
        assert!(!row.is_complete());
        row.take(sample(12, 2_500_000_000));
        assert_eq!((row.cpu, row.memory_share()), (Some(75.0), Some(25.0)));
        assert!(row.is_complete());
        // A task that was restarted, a clock that stands still.
        row.take(sample(13, 0));
        assert_eq!(row.cpu, None);
        row.take(sample(13, 5));
        assert_eq!(row.cpu, None);
    }

    #[test]
    fn what_is_not_known_is_left_open() {
        let mut good = row();
        good.take(sample(1, 0));
        good.take(sample(2, 10_000_000));
        let mut bad = row();
        bad.take(TaskStats { error: "it is gone".into(), ..Default::default() });
        let expected = "\
Task ID       Task   Node  CPU   Memory / Limit     Memory  Received / Sent  Read / Written  PIDs  Error
-------       ----   ----  ---   --------------     ------  ---------------  --------------  ----  -----
0123456789ab  web.1  w     1.0%  1.0 MiB / 4.0 MiB  25.0%   - / -            5 B / 2.0 KiB   3     
0123456789ab  web.1  w     -     - / -              -       - / -            - / -           -     it is gone
";
        assert_eq!(table(&[good.clone(), bad.clone()]), expected);
        let lines = lines(&[good, bad]);
        let values: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(values[0]["cpu_percent"], 1.0);
        assert_eq!(values[0]["network_sent_bytes"], Value::Null);
        assert_eq!((&values[0]["error"], &values[1]["error"]), (&Value::Null, &json!("it is gone")));
    }
}
