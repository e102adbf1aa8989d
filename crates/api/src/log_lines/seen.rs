//! What came of each task, so that what comes again can be left out.

use std::collections::HashMap;

use prost_types::Timestamp;

use super::Line;

/// How far one stream of one task is, by times of any kind. Within a stream times do not go back, and whoever begins again
/// sends the same lines in the same order; so the time of the last line, and how many there were with it, say which are
/// new.
#[derive(Debug, Clone, Copy)]
pub struct Mark<T>(Option<Last<T>>);

impl<T> Default for Mark<T> {
    fn default() -> Self {
        Mark(None)
    }
}

#[derive(Debug, Clone, Copy)]
struct Last<T> {
    time: T,
    count: u64,
    /// Lines with that time that are still to be left out.
    repeated: u64,
    /// Whoever sends began again and has not come this far.
    again: bool,
}

impl<T: Copy + Ord> Mark<T> {
    /// Takes note of a line; `false` if it was there before.
    pub fn is_new(&mut self, time: T) -> bool {
        match &mut self.0 {
            Some(last) if last.again && time < last.time => false,
            Some(last) if last.again && time == last.time && last.repeated > 0 => {
                last.repeated -= 1;
                false
            }
            Some(last) if time == last.time => {
                (last.again, last.count) = (false, last.count + 1);
                true
            }
            other => {
                *other = Some(Last { time, count: 1, repeated: 0, again: false });
                true
            }
        }
    }

    /// Lines come again, from the beginning or from this time on.
    pub fn begin(&mut self) {
        if let Some(last) = &mut self.0 {
            (last.repeated, last.again) = (last.count, true);
        }
    }

    /// The time of the last line; `None` if nothing came.
    pub fn time(&self) -> Option<T> {
        self.0.map(|last| last.time)
    }
}

/// How far each stream of each task is.
#[derive(Debug, Default)]
pub struct Seen(HashMap<String, [Mark<(i64, i32)>; 3]>);

impl Seen {
    /// Takes note of a line; `false` if it was there before.
    pub fn is_new(&mut self, line: &Line<'_>) -> bool {
        let time = line.timestamp.map_or((0, 0), |t| (t.seconds, t.nanos));
        let marks = match self.0.get_mut(line.task_id) {
            Some(marks) => marks,
            None => self.0.entry(line.task_id.to_owned()).or_default(),
        };
        marks[usize::try_from(line.stream).unwrap_or(0).min(2)].is_new(time)
    }

    /// Lines come again from the beginning, or from [`Seen::since`].
    pub fn begin(&mut self) {
        self.0.values_mut().flatten().for_each(Mark::begin);
    }

    /// From when on lines may be missing: older ones need not come again. `None` if nothing came.
    pub fn since(&self) -> Option<Timestamp> {
        let (seconds, nanos) = self.0.values().flatten().filter_map(Mark::time).min()?;
        Some(Timestamp { seconds, nanos })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log_lines::RawLogMessage;
    use crate::v1::{LogContext, LogMessage};

    fn new(seen: &mut Seen, task: &str, stream: i32, seconds: i64) -> bool {
        let message = LogMessage {
            context: LogContext { task_id: task.into(), ..Default::default() },
            timestamp: Some(Timestamp { seconds, nanos: 0 }),
            stream,
            ..Default::default()
        };
        seen.is_new(&RawLogMessage::from(&message).read().unwrap())
    }

    #[test]
    fn whoever_begins_again_repeats_nothing_and_loses_nothing() {
        let mut seen = Seen::default();
        assert_eq!(seen.since(), None);
        for (task, stream, seconds) in [("a", 1, 1), ("a", 1, 3), ("a", 2, 3), ("a", 1, 3), ("b", 1, 9)] {
            assert!(new(&mut seen, task, stream, seconds));
        }
        assert_eq!(seen.since().map(|t| t.seconds), Some(3));
        seen.begin();
        let again = [
            ("a", 1, 1, false),
            ("a", 1, 3, false),
            ("a", 2, 3, false),
            ("a", 1, 3, false),
            ("a", 1, 3, true), // a third one with this time
            ("a", 1, 4, true),
            ("c", 1, 1, true), // another task
            ("b", 1, 9, false),
            ("b", 1, 9, true),
            ("a", 2, 3, true),
        ];
        for (task, stream, seconds, expected) in again {
            assert_eq!(new(&mut seen, task, stream, seconds), expected, "{task} {stream} {seconds}");
        }
        seen.begin();
        for _ in 0..2 {
            assert!(!new(&mut seen, "b", 1, 9), "both of them");
        }
        assert!(new(&mut seen, "b", 1, 9));
    }

    /// Clocks are set back; what comes first is shown all the same.
    #[test]
    fn nothing_is_left_out_of_the_first_time() {
        let mut seen = Seen::default();
        for seconds in [5, 4, 5, 4] {
            assert!(new(&mut seen, "a", 1, seconds));
        }
    }
}
