//! The syntaxes of values on the command line. Each parser says what it expected.

pub(crate) mod cpu;
pub(crate) mod csv;
pub(crate) mod detach_keys;
pub(crate) mod duration;
pub(crate) mod gpus;
pub(crate) mod log;
pub(crate) mod mount;
pub(crate) mod mount_fields;
pub(crate) mod network;
pub(crate) mod pair;
pub(crate) mod port;
pub(crate) mod preference;
pub(crate) mod publish;
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

/// Reads a whole number that may be negative.
pub(crate) fn integer<T: TryFrom<i64>>(text: &str) -> Result<T, String> {
    let number: i64 = text.parse().map_err(|_| "expected a whole number".to_owned())?;
    T::try_from(number).map_err(|_| "the number is too large or too small".into())
}

/// Reads a share of all, as a number from 0 to 1.
pub(crate) fn share(text: &str) -> Result<f32, String> {
    let number = text.parse().ok().filter(|number| (0.0..=1.0).contains(number));
    number.ok_or_else(|| "expected a share from 0 to 1, such as 0.25 for a quarter of the tasks".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_numbers_from_0_to_1() {
        for (text, value) in [("0", 0.0), ("0.25", 0.25), (".5", 0.5), ("1", 1.0), ("1e-1", 0.1)] {
            assert_eq!(share(text), Ok(value), "{text}");
        }
        for bad in ["", "-0.1", "1.1", "25%", "25", "NaN", "inf", "half"] {
            assert!(share(bad).unwrap_err().contains("from 0 to 1, such as 0.25"), "{bad}");
        }
    }

    #[test]
    fn whole_numbers_may_be_negative() {
        assert_eq!((integer::<i32>("-7"), integer::<i64>("9")), (Ok(-7), Ok(9)));
        assert_eq!(integer::<i32>("1.5").unwrap_err(), "expected a whole number");
        assert_eq!(integer::<i32>("2147483648").unwrap_err(), "the number is too large or too small");
    }

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
