//! Conversions between the wire's durations and timestamps and those of the standard library.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A wire duration as a standard one; negative ones become zero.
pub fn to_std(duration: &prost_types::Duration) -> Duration {
    if duration.seconds < 0 || duration.nanos < 0 {
        return Duration::ZERO;
    }
    Duration::new(duration.seconds as u64, duration.nanos.min(999_999_999) as u32)
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
