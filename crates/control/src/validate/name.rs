//! Names of objects.

use crate::error::{Error, Result};

/// Longest name of a service, network, node or other object that becomes a DNS name, in bytes.
const MAX: usize = 63;
/// Longest name of a secret or a config, in bytes.
const MAX_SECRET: usize = 64;

/// Names that take part in DNS: letters and digits with runs of `-` and `_` inside.
pub(crate) fn dns(name: &str) -> Result<()> {
    if name.is_empty() {
        return Err(Error::argument("meta: name must be provided"));
    }
    if !framed(name, |b| b == b'-' || b == b'_') {
        return Err(Error::argument("name must be valid as a DNS name component"));
    }
    if name.len() > MAX {
        return Err(Error::argument(format!("name must be {MAX} characters or fewer")));
    }
    Ok(())
}

/// Names of secrets and configs: dots too.
pub(crate) fn secret_or_config(name: &str) -> Result<()> {
    if name.is_empty() {
        return Err(Error::argument("name must be provided"));
    }
    if name.len() > MAX_SECRET || !framed(name, |b| matches!(b, b'-' | b'_' | b'.')) {
        return Err(Error::argument(
            "invalid name, only 64 [a-zA-Z0-9-_.] characters allowed, and the start and end character must be [a-zA-Z0-9]",
        ));
    }
    Ok(())
}

/// Letters and digits at both ends, and those or `inner` between.
fn framed(name: &str, inner: impl Fn(u8) -> bool) -> bool {
    let bytes = name.as_bytes();
    bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || inner(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_names() {
        let long = "a".repeat(63);
        for good in ["a", "web", "Web-1", "a_-_b", "0", &long] {
            assert_eq!(dns(good), Ok(()), "{good}");
        }
        let check = |bad: &str, text: &str| assert_eq!(dns(bad), Err(Error::argument(text)), "{bad}");
        check("", "meta: name must be provided");
        check(&"a".repeat(64), "name must be 63 characters or fewer");
        for bad in ["-a", "a-", "_a", "a_", "a.b", "a/b", "a b", "ä", " "] {
            check(bad, "name must be valid as a DNS name component");
        }
    }

    #[test]
    fn secret_names() {
        for good in ["a", "a.b", "a-_.b", &"a".repeat(64)] {
            assert_eq!(secret_or_config(good), Ok(()), "{good}");
        }
        assert_eq!(secret_or_config(""), Err(Error::argument("name must be provided")));
        for bad in [".a", "a.", "a b", "a/b", &"a".repeat(65)] {
            let error = secret_or_config(bad).unwrap_err().to_string();
            assert!(
                error.starts_with("invalid name, only 64 [a-zA-Z0-9-_.] characters allowed"),
                "{bad}: {error}"
            );
        }
    }
}
