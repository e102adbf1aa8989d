//! Limits of processes: `nofile=1024:2048`.

/// Names of limits, without `RLIMIT_`.
const NAMES: [&str; 15] = [
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// A limit; -1 is no limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ulimit {
    pub(crate) name: String,
    pub(crate) soft: i64,
    pub(crate) hard: i64,
}

/// Reads `name=soft[:hard]`; the hard limit is the soft one if it is left out.
pub(crate) fn parse(text: &str) -> Result<Ulimit, String> {
    let bad = |why: &str| format!("ulimit {text:?}: {why}");
    let (name, limits) = text.split_once('=').ok_or_else(|| bad("expected name=soft[:hard]"))?;
    if !NAMES.contains(&name) {
        return Err(bad(&format!("{name:?} is not one of {}", NAMES.join(", "))));
    }
    let number = |text: &str| match text.parse::<i64>() {
        Ok(number) if number >= -1 => Ok(number),
        _ => Err(bad(&format!("{text:?} is no limit (-1 is none)"))),
    };
    let (soft, hard) = match limits.split_once(':') {
        Some((soft, hard)) => (number(soft)?, number(hard)?),
        None => (number(limits)?, number(limits)?),
    };
    if hard != -1 && (soft == -1 || soft > hard) {
        return Err(bad("the soft limit is above the hard one"));
    }
    Ok(Ulimit { name: name.to_owned(), soft, hard })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ulimits() {
        let check = |text: &str, name: &str, soft, hard| {
            assert_eq!(parse(text), Ok(Ulimit { name: name.into(), soft, hard }), "{text}");
        };
        check("nofile=10:20", "nofile", 10, 20);
        check("core=-1", "core", -1, -1);
        check("nproc=5:-1", "nproc", 5, -1);
        for bad in ["nofile=20:10", "foo=1", "nofile", "nofile=1:2:3", "nofile=-1:5", "as=1", "cpu=-2"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
