//! Amounts of memory: `512m`, `1.5GiB`.

const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// Reads an amount in bytes; units are powers of 1024 whatever they are called.
pub(crate) fn parse(text: &str) -> Result<i64, String> {
    bytes(text).ok_or_else(|| {
        format!("{text:?} is no amount of memory: expected a number and a unit of b, k, m, g, t or p, such as 512m")
    })
}

fn bytes(text: &str) -> Option<i64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let suffix = suffix.strip_prefix(' ').unwrap_or(suffix).to_ascii_lowercase();
    let power = match suffix.as_str() {
        "" | "b" => 0,
        _ => {
            let (unit, rest) = suffix.split_at_checked(1)?;
            if !matches!(rest, "" | "b" | "ib") {
                return None;
            }
            "kmgtp".find(unit)? + 1
        }
    };
    if !number.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let number: f64 = number.parse().ok()?;
    let bytes = number * 1024f64.powi(power as i32);
    (bytes < i64::MAX as f64).then_some(bytes as i64)
}

/// Writes an amount as people read it: below 10 of a unit with one decimal.
pub(crate) fn format(bytes: i64) -> String {
    let negative = if bytes < 0 { "-" } else { "" };
    let bytes = bytes.unsigned_abs();
    if bytes < 10 {
        return format!("{negative}{bytes} B");
    }
    let power = (bytes.ilog2() / 10) as usize;
    let value = (bytes as f64 / 1024f64.powi(power as i32) * 10.0 + 0.5).floor() / 10.0;
    let unit = UNITS[power];
    if value < 10.0 { format!("{negative}{value:.1} {unit}") } else { format!("{negative}{value:.0} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read() {
        for (text, bytes) in [
            ("0", 0),
            ("17", 17),
            ("512m", 536_870_912),
            ("1.5GiB", 1_610_612_736),
            ("1 gb", 1_073_741_824),
            ("2K", 2048),
            ("1kib", 1024),
            ("3b", 3),
            ("1.9b", 1),
            ("1t", 1 << 40),
            ("1p", 1 << 50),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for bad in ["", "-1", "5x", "m", "1kbx", "1  g", "1..2m", ".5m", "1e3", "999999p"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn amounts_are_written() {
        for (bytes, text) in [
            (9, "9 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (10240, "10 KiB"),
            (536_870_912, "512 MiB"),
            (4_080_218_931, "3.8 GiB"),
        ] {
            assert_eq!(format(bytes), text);
        }
    }
}
