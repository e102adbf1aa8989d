//! Moments, as distance from now and as a date.

use std::time::{Duration, SystemTime};

use prost_types::Timestamp;
use swarm_api::duration::to_system_time;

/// How far a moment is from now, such as `3 minutes ago`. Nothing for a moment that is not known.
pub(crate) fn relative(moment: Option<&Timestamp>, now: SystemTime) -> String {
    let Some(moment) = moment.map(to_system_time) else { return String::new() };
    let (distance, direction) = match now.duration_since(moment) {
        Ok(distance) => (distance, "ago"),
        Err(ahead) => (ahead.duration(), "from now"),
    };
    match distance_of(distance) {
        None => "now".to_owned(),
        Some(text) => format!("{text} {direction}"),
    }
}

fn distance_of(distance: Duration) -> Option<String> {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    const WEEK: u64 = 7 * DAY;
    const MONTH: u64 = 30 * DAY;
    const YEAR: u64 = 12 * MONTH;
    let seconds = distance.as_secs();
    let count = |unit: u64, name: &str| match seconds / unit {
        1 => format!("1 {name}"),
        n => format!("{n} {name}s"),
    };
    Some(match seconds {
        0 => return None,
        1..MINUTE => count(1, "second"),
        MINUTE..HOUR => count(MINUTE, "minute"),
        HOUR..DAY => count(HOUR, "hour"),
        DAY..WEEK => count(DAY, "day"),
        WEEK..MONTH => count(WEEK, "week"),
        MONTH..YEAR => count(MONTH, "month"),
        _ if seconds < 18 * MONTH => "1 year".to_owned(),
        _ if seconds < 2 * YEAR => "2 years".to_owned(),
        _ if seconds < 37 * YEAR => count(YEAR, "year"),
        _ => "a long while".to_owned(),
    })
}

/// The moment as a date and time in UTC (RFC 3339), with as many decimals as it has.
pub(crate) fn absolute(moment: Option<&Timestamp>) -> String {
    let Some(moment) = moment else { return "(timestamp: nil Timestamp)".to_owned() };
    // Nothing here happened before 1970, and the formatter knows no such time.
    let time = to_system_time(moment).max(SystemTime::UNIX_EPOCH);
    let text = humantime::format_rfc3339_nanos(time).to_string();
    text.trim_end_matches('Z').trim_end_matches('0').trim_end_matches('.').to_owned() + "Z"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_rounded_down() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(4_000_000_000);
        let check = |seconds: f64, text: &str| {
            let moment = now - Duration::from_secs_f64(seconds);
            assert_eq!(relative(Some(&moment.into()), now), text, "{seconds}");
        };
        const DAY: f64 = 86_400.0;
        check(0.5, "now");
        check(1.5, "1 second ago");
        check(59.0, "59 seconds ago");
        check(60.0, "1 minute ago");
        check(119.0, "1 minute ago");
        check(120.0, "2 minutes ago");
        check(7200.0, "2 hours ago");
        check(6.0 * DAY, "6 days ago");
        check(13.0 * DAY, "1 week ago");
        check(29.0 * DAY, "4 weeks ago");
        check(45.0 * DAY, "1 month ago");
        check(400.0 * DAY, "1 year ago");
        check(600.0 * DAY, "2 years ago");
        check(800.0 * DAY, "2 years ago");
        check(40.0 * 360.0 * DAY, "a long while ago");
        let ahead = now + Duration::from_secs(90);
        assert_eq!(relative(Some(&ahead.into()), now), "1 minute from now");
        assert_eq!(relative(None, now), "");
    }

    #[test]
    fn dates() {
        let check = |seconds, nanos, text: &str| {
            assert_eq!(absolute(Some(&Timestamp { seconds, nanos })), text);
        };
        check(0, 0, "1970-01-01T00:00:00Z");
        check(1_714_564_800, 500_000_000, "2024-05-01T12:00:00.5Z");
        check(951_782_400, 1, "2000-02-29T00:00:00.000000001Z");
        check(-1, 0, "1970-01-01T00:00:00Z");
        assert_eq!(absolute(None), "(timestamp: nil Timestamp)");
    }
}
