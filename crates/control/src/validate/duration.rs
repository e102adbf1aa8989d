//! Durations on the wire: what protobuf allows, and 64 bits of nanoseconds.

use prost_types::Duration;

use crate::error::{Error, Result};

/// 10,000 years, the limit of protobuf's durations.
const MAX_SECONDS: i64 = 315_576_000_000;

/// The duration in nanoseconds.
pub(crate) fn nanos(duration: &Duration) -> Result<i64> {
    let Duration { seconds, nanos } = *duration;
    if !(-MAX_SECONDS..=MAX_SECONDS).contains(&seconds) {
        return Err(Error::argument(format!("duration: {seconds}s is beyond ±10000 years")));
    }
    if !(-999_999_999..=999_999_999).contains(&nanos) {
        return Err(Error::argument(format!("duration: {nanos} nanoseconds are out of range")));
    }
    if (seconds < 0 && nanos > 0) || (seconds > 0 && nanos < 0) {
        return Err(Error::argument(format!(
            "duration: seconds ({seconds}) and nanoseconds ({nanos}) have different signs"
        )));
    }
    seconds.checked_mul(1_000_000_000).and_then(|total| total.checked_add(i64::from(nanos))).ok_or_else(
        || Error::argument(format!("duration: {seconds}s does not fit into 64 bits of nanoseconds")),
    )
}

/// The duration is well-formed and not negative.
pub(crate) fn not_negative(what: &str, duration: &Duration) -> Result<()> {
    if nanos(duration)? < 0 {
        return Err(Error::argument(format!("{what} cannot be negative")));
    }
    Ok(())
}

/// As [`not_negative`], where an absent one is fine.
pub(crate) fn optional(what: &str, duration: Option<&Duration>) -> Result<()> {
    duration.map_or(Ok(()), |duration| not_negative(what, duration))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_durations_are_refused() {
        let check = |seconds, n, expected: Option<i64>| {
            assert_eq!(nanos(&Duration { seconds, nanos: n }).ok(), expected, "{seconds} {n}");
        };
        check(0, 0, Some(0));
        check(1, 5, Some(1_000_000_005));
        check(-1, -5, Some(-1_000_000_005));
        check(9_223_372_036, 854_775_807, Some(i64::MAX));
        check(9_223_372_036, 854_775_808, None);
        check(MAX_SECONDS + 1, 0, None);
        check(-MAX_SECONDS - 1, 0, None);
        check(1, -1, None);
        check(-1, 1, None);
        check(0, 1_000_000_000, None);
    }

    #[test]
    fn negative_durations_are_named() {
        let error = not_negative("TaskSpec: restart-delay", &Duration { seconds: -1, nanos: 0 }).unwrap_err();
        assert_eq!(error, Error::argument("TaskSpec: restart-delay cannot be negative"));
        assert_eq!(optional("x", None), Ok(()));
    }
}
