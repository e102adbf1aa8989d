//! Durations as Go writes them: `1h30m`, `500ms`, `0`.

use prost_types::Duration;

const UNITS: [(&str, i128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Reads a duration.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let nanos = nanos(text).ok_or_else(|| {
        format!(
            "{text:?} is no duration: expected numbers with a unit of ns, us, ms, s, m or h, such as 1m30s"
        )
    })?;
    Ok(Duration { seconds: nanos / 1_000_000_000, nanos: (nanos % 1_000_000_000) as i32 })
}

/// Reads a duration where one below zero makes no sense.
pub(crate) fn not_negative(text: &str) -> Result<Duration, String> {
    let duration = parse(text)?;
    if duration.seconds < 0 || duration.nanos < 0 {
        return Err(format!("{text:?} is negative: expected 0 or more, such as 1m30s"));
    }
    Ok(duration)
}

fn nanos(text: &str) -> Option<i64> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(end);
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        rest = after;
        let unit = UNITS.iter().find(|(name, _)| *name == unit)?.1;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
            return None;
        }
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        total = total.checked_add(whole.checked_mul(unit)?)?;
        let mut scale = unit;
        for digit in fraction.bytes() {
            // Digits below a nanosecond are dropped, tenth by tenth, as precisely as needed.
            total = total.checked_add(i128::from(digit - b'0') * scale / 10)?;
            scale /= 10;
        }
    }
    if text.trim_start_matches(['-', '+']).is_empty() {
        return None;
    }
    i64::try_from(sign * total).ok()
}

/// Writes a duration as Go does: hours, minutes and seconds from one second up, else the unit that fits.
pub(crate) fn format(duration: &Duration) -> String {
    let total = i128::from(duration.seconds) * 1_000_000_000 + i128::from(duration.nanos);
    let sign = if total < 0 { "-" } else { "" };
    let total = total.unsigned_abs();
    let decimal = |unit: u128| {
        let (whole, fraction) = (total / unit, total % unit);
        let width = unit.ilog10() as usize;
        let text = format!("{whole}.{fraction:0width$}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    let text = match total {
        0 => "0s".to_owned(),
        1..1_000 => format!("{total}ns"),
        1_000..1_000_000 => decimal(1_000) + "µs",
        1_000_000..1_000_000_000 => decimal(1_000_000) + "ms",
        _ => {
            let (hours, minutes) = (total / 3_600_000_000_000, total / 60_000_000_000 % 60);
            let rest = total % 60_000_000_000;
            let seconds = format!("{}.{:09}", rest / 1_000_000_000, rest % 1_000_000_000);
            let seconds = seconds.trim_end_matches('0').trim_end_matches('.');
            match (hours, minutes) {
                (0, 0) => format!("{seconds}s"),
                (0, _) => format!("{minutes}m{seconds}s"),
                _ => format!("{hours}h{minutes}m{seconds}s"),
            }
        }
    };
    format!("{sign}{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written_as_go_does() {
        let check = |text: &str, nanos: i64, shown: &str| {
            let duration = parse(text).unwrap();
            assert_eq!(i64::from(duration.nanos) + duration.seconds * 1_000_000_000, nanos, "{text}");
            assert_eq!(format(&duration), shown);
        };
        check("0", 0, "0s");
        check("5s", 5_000_000_000, "5s");
        check("1h30m", 5_400_000_000_000, "1h30m0s");
        check("90s", 90_000_000_000, "1m30s");
        check("2160h", 7_776_000_000_000_000, "2160h0m0s");
        check("1.5h", 5_400_000_000_000, "1h30m0s");
        check("500ms", 500_000_000, "500ms");
        check("1.5s", 1_500_000_000, "1.5s");
        check(".5s", 500_000_000, "500ms");
        check("100us", 100_000, "100µs");
        check("100µs", 100_000, "100µs");
        check("7ns", 7, "7ns");
        check("-1m", -60_000_000_000, "-1m0s");
        for bad in ["", "5", "-", "s", "1x", "1s2", "1..5s", ".s", "1 s", "9223372036855s"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn where_durations_below_zero_make_no_sense_they_are_refused() {
        assert_eq!(not_negative("1m"), Ok(Duration { seconds: 60, nanos: 0 }));
        assert_eq!(not_negative("-0"), Ok(Duration::default()));
        for bad in ["-1m", "-1ns"] {
            assert!(not_negative(bad).unwrap_err().contains("expected 0 or more"), "{bad}");
        }
        assert!(not_negative("5").unwrap_err().contains("is no duration"));
    }
}
