//! Conversions between the wire's durations and timestamps and those of the standard library.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The longest duration of the wire's format: ten thousand years. It can be added to any time of day or of a timer.
pub const LONGEST: Duration = Duration::from_secs(315_576_000_000);

/// A wire duration as a standard one; negative ones become zero, and those that are too long [`LONGEST`]. Not everything
/// that is stored has been checked.
pub fn to_std(duration: &prost_types::Duration) -> Duration {
    if duration.seconds < 0 || duration.nanos < 0 {
        return Duration::ZERO;
    }
    Duration::new(duration.seconds as u64, duration.nanos.min(999_999_999) as u32).min(LONGEST)
}

/// A standard duration on the wire; what does not fit is the longest duration that does.
pub fn from_std(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: duration.subsec_nanos() as i32,
    }
}

/// A moment on the wire.
pub fn timestamp(time: SystemTime) -> prost_types::Timestamp {
    prost_types::Timestamp::from(time)
}

/// A wire timestamp as a moment; one that the platform can't express is the epoch.
pub fn to_system_time(timestamp: &prost_types::Timestamp) -> SystemTime {
    SystemTime::try_from(*timestamp).unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn whatever_is_on_the_wire_can_be_added_to_a_time() {
        let endless = to_std(&prost_types::Duration { seconds: i64::MAX, nanos: i32::MAX });
        assert_eq!(endless, LONGEST);
        assert!(
            SystemTime::now().checked_add(endless).is_some() && Instant::now().checked_add(endless).is_some()
        );
        assert_eq!(to_std(&prost_types::Duration { seconds: 7, nanos: i32::MAX }).as_secs(), 7);
        assert_eq!(to_std(&prost_types::Duration { seconds: -1, nanos: 0 }), Duration::ZERO);
    }
}
