//! How far a log was read, so that reading it anew repeats nothing.

use std::time::SystemTime;

use crate::{LogLine, LogOptions, LogStream};

/// The last line of each stream: within one of them, times do not go back.
#[derive(Debug, Default)]
pub(super) struct Position([Option<Mark>; 2]);

#[derive(Debug, Clone, Copy)]
struct Mark {
    time: SystemTime,
    /// Lines with this time.
    count: u64,
    /// How many of them are still to be left out.
    repeated: u64,
    again: bool,
}

impl Position {
    /// Takes note of a line; `false` if it was read before.
    pub(super) fn is_new(&mut self, line: &LogLine) -> bool {
        let mark = &mut self.0[usize::from(line.stream == LogStream::Stderr)];
        match mark {
            Some(mark) if mark.again && line.timestamp < mark.time => false,
            Some(mark) if mark.again && line.timestamp == mark.time && mark.repeated > 0 => {
                mark.repeated -= 1;
                false
            }
            Some(mark) if line.timestamp == mark.time => {
                (mark.again, mark.count) = (false, mark.count + 1);
                true
            }
            other => {
                *other = Some(Mark { time: line.timestamp, count: 1, repeated: 0, again: false });
                true
            }
        }
    }

    /// The log is read anew: what to ask for.
    pub(super) fn again(&mut self, options: &LogOptions) -> LogOptions {
        let marks = self.0.iter_mut().flatten();
        let since = marks.map(|mark| {
            (mark.repeated, mark.again) = (mark.count, true);
            mark.time
        });
        match since.min() {
            Some(since) => LogOptions { since: Some(since), tail: None, ..options.clone() },
            None => options.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn reading_anew_repeats_nothing_and_loses_nothing() {
        let line = |stream, seconds| LogLine {
            timestamp: UNIX_EPOCH + Duration::from_secs(seconds),
            stream,
            data: Default::default(),
            attrs: Default::default(),
        };
        let (out, err) = (LogStream::Stdout, LogStream::Stderr);
        let mut position = Position::default();
        let options = LogOptions { tail: Some(3), follow: true, ..Default::default() };
        assert_eq!(position.again(&options), options, "nothing was read");
        for (stream, seconds) in [(out, 1), (out, 2), (out, 2), (err, 3)] {
            assert!(position.is_new(&line(stream, seconds)));
        }
        let again = position.again(&options);
        assert_eq!(again.since, Some(UNIX_EPOCH + Duration::from_secs(2)));
        assert_eq!((again.tail, again.follow), (None, true));
        for (stream, seconds, expected) in [
            (out, 2, false),
            (out, 2, false),
            (out, 2, true),
            (err, 3, false),
            (err, 3, true),
            (out, 4, true),
        ] {
            assert_eq!(position.is_new(&line(stream, seconds)), expected, "{stream:?} {seconds}");
        }
    }
}
