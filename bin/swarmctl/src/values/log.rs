//! Which lines of a log: how many of the last, and since when.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A moment, or how long ago it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Since {
    /// So long ago.
    Ago(Duration),
    /// Then.
    At(SystemTime),
}

impl Since {
    /// The moment.
    pub(crate) fn moment(self, now: SystemTime) -> SystemTime {
        match self {
            // Nothing was written before 1970.
            Since::Ago(ago) => now.checked_sub(ago).unwrap_or(UNIX_EPOCH).max(UNIX_EPOCH),
            Since::At(moment) => moment,
        }
    }
}

/// Reads a duration, a date and time (RFC 3339, in UTC), or seconds since 1970.
pub(crate) fn since(text: &str) -> Result<Since, String> {
    if let Ok(ago) = super::duration::not_negative(text) {
        return Ok(Since::Ago(swarm_api::duration::to_std(&ago)));
    }
    if let Ok(moment) = humantime::parse_rfc3339_weak(text) {
        return Ok(Since::At(moment));
    }
    let seconds = text.parse::<f64>().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let moment = seconds.and_then(|seconds| UNIX_EPOCH.checked_add(seconds));
    moment.map(Since::At).ok_or_else(|| {
        format!(
            "{text:?} is no moment: expected how long ago it was, such as 10m, a date and time in UTC, such as \
             2024-05-01T12:00:00Z, or seconds since 1970"
        )
    })
}

/// Reads a number of lines, as it stands on the wire: 0 for all of them, −(n+1) for the last n.
pub(crate) fn tail(text: &str) -> Result<i64, String> {
    if text == "all" {
        return Ok(0);
    }
    let lines = text.parse::<u64>().ok().and_then(|lines| i64::try_from(lines).ok());
    lines
        .filter(|lines| *lines < i64::MAX)
        .map(|lines| -lines - 1)
        .ok_or_else(|| "expected a number of lines that is not negative, or all".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails_are_numbers_or_all() {
        for (text, wire) in [("all", 0), ("0", -1), ("1", -2), ("10", -11)] {
            assert_eq!(tail(text), Ok(wire), "{text}");
        }
        for bad in ["", "-1", "ten", "1.5", "9223372036854775807", "99999999999999999999"] {
            assert!(tail(bad).unwrap_err().contains("or all"), "{bad}");
        }
    }

    #[test]
    fn moments_are_distances_dates_or_seconds() {
        let at = |seconds| Ok(Since::At(UNIX_EPOCH + Duration::from_millis(seconds)));
        assert_eq!(since("10m"), Ok(Since::Ago(Duration::from_secs(600))));
        assert_eq!(since("0"), Ok(Since::Ago(Duration::ZERO)));
        assert_eq!(since("1970-01-01T00:00:01Z"), at(1000));
        assert_eq!(since("1970-01-01 00:00:01.5"), at(1500));
        assert_eq!(since("1714564800.25"), at(1_714_564_800_250));
        for bad in ["", "yesterday", "-5m", "-1", "NaN", "1e300", "1970-13-01T00:00:00Z"] {
            assert!(since(bad).unwrap_err().contains("such as 10m"), "{bad}");
        }
        let now = UNIX_EPOCH + Duration::from_secs(700);
        assert_eq!(since("10m").unwrap().moment(now), UNIX_EPOCH + Duration::from_secs(100));
        assert_eq!(since("1h").unwrap().moment(now), UNIX_EPOCH);
    }
}
