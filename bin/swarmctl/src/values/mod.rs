//! The syntaxes of values on the command line. Each parser says what it expected.

pub(crate) mod cpu;
pub(crate) mod csv;
pub(crate) mod duration;
pub(crate) mod mount;
pub(crate) mod pair;
pub(crate) mod port;
pub(crate) mod reference;
pub(crate) mod size;
pub(crate) mod ulimit;

pub(crate) use csv::List;

/// Reads a boolean in any of the spellings that Go's flags have.
pub(crate) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "True" | "TRUE" => Ok(true),
        "0" | "f" | "F" | "false" | "False" | "FALSE" => Ok(false),
        _ => Err("expected true or false".into()),
    }
}

/// Reads an unsigned number: decimal, or with `0x`, `0o`, `0` or `0b` before it.
pub(crate) fn unsigned(text: &str) -> Result<u64, String> {
    let (digits, radix, underscores) = match text.as_bytes() {
        [b'0', b'x' | b'X', ..] => (&text[2..], 16, true),
        [b'0', b'o' | b'O', ..] => (&text[2..], 8, true),
        [b'0', b'b' | b'B', ..] => (&text[2..], 2, true),
        [b'0', _, ..] => (&text[1..], 8, true),
        _ => (text, 10, false),
    };
    let clean = if underscores { digits.replace('_', "") } else { digits.to_owned() };
    if clean.starts_with('+') {
        return Err("expected a number that is not negative".into());
    }
    u64::from_str_radix(&clean, radix).map_err(|error| match error.kind() {
        std::num::IntErrorKind::PosOverflow => "the number is too large".into(),
        _ => "expected a number that is not negative".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_booleans_are_read_as_go_reads_them() {
        for (text, value) in [("0", 0), ("17", 17), ("0x1F", 31), ("0o17", 15), ("017", 15), ("0b1_01", 5)] {
            assert_eq!(unsigned(text), Ok(value), "{text}");
        }
        for bad in ["", "-1", "+1", "1.5", "x", "1_000", "18446744073709551616"] {
            assert!(unsigned(bad).is_err(), "{bad}");
        }
        assert_eq!((boolean("T"), boolean("0")), (Ok(true), Ok(false)));
        assert!(boolean("yes").is_err());
    }
}
