//! How far a log was read, so that reading it anew repeats nothing.

use std::time::SystemTime;

use swarm_api::log_lines::Mark;

use crate::{LogLine, LogOptions, LogStream};

/// How far each stream is.
#[derive(Debug, Default)]
pub(super) struct Position([Mark<SystemTime>; 2]);

impl Position {
    /// Takes note of a line; `false` if it was read before.
    pub(super) fn is_new(&mut self, line: &LogLine) -> bool {
        self.0[usize::from(line.stream == LogStream::Stderr)].is_new(line.timestamp)
    }

    /// The log is read anew: what to ask for.
    pub(super) fn again(&mut self, options: &LogOptions) -> LogOptions {
        self.0.iter_mut().for_each(Mark::begin);
        match self.0.iter().filter_map(Mark::time).min() {
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
