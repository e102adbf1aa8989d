//! Amounts of CPU: `0.5`, `1/2`, `5e-1`.

const NANO: i128 = 1_000_000_000;

/// Reads an amount in billionths of a CPU, exactly.
pub(crate) fn parse(text: &str) -> Result<i64, String> {
    let (above, below) = fraction(text)
        .ok_or_else(|| format!("{text:?} is no amount of CPU: expected a number such as 0.5 or 1/2"))?;
    let nano = above.checked_mul(NANO).filter(|product| product % below == 0).map(|product| product / below);
    nano.and_then(|nano| i64::try_from(nano).ok()).ok_or_else(|| {
        format!("{text:?} is too precise or too large: billionths of a CPU are the least unit")
    })
}

fn fraction(text: &str) -> Option<(i128, i128)> {
    match text.split_once('/') {
        Some((above, below)) => {
            let (above, below): (i128, i128) = (above.parse().ok()?, below.parse().ok()?);
            (below > 0).then_some((above, below))
        }
        None => decimal(text),
    }
}

fn decimal(text: &str) -> Option<(i128, i128)> {
    let (number, exponent) = match text.split_once(['e', 'E']) {
        Some((number, exponent)) => (number, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (whole, decimals) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{decimals}");
    if digits.trim_start_matches(['-', '+']).is_empty() || !decimals.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let above: i128 = digits.parse().ok()?;
    let places = i32::try_from(decimals.len()).ok()? - exponent;
    let power = 10i128.checked_pow(places.unsigned_abs())?;
    if places < 0 { Some((above.checked_mul(power)?, 1)) } else { Some((above, power)) }
}

/// Writes billionths of a CPU as a number of CPUs.
pub(crate) fn format(nano: i64) -> String {
    (nano as f64 / NANO as f64).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_of_cpu() {
        for (text, nano) in [
            ("0.5", 500_000_000),
            ("1/2", 500_000_000),
            ("1e-1", 100_000_000),
            ("2", 2_000_000_000),
            ("1.5E1", 15_000_000_000),
            ("0.000000001", 1),
            ("-1", -1_000_000_000),
        ] {
            assert_eq!(parse(text), Ok(nano), "{text}");
        }
        for bad in ["", "x", "0.1234567891", "1/3", "1/0", ".", "1e", "1e40", "1.5.5"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert_eq!((format(500_000_000), format(2_000_000_000)), ("0.5".into(), "2".into()));
    }
}
