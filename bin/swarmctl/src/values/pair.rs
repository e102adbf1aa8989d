//! `key=value`.

use std::collections::BTreeMap;

/// Labels: both sides are trimmed, and there must be a `=`.
pub(crate) fn labels(terms: &[String]) -> Result<BTreeMap<String, String>, String> {
    terms
        .iter()
        .map(|term| match term.split_once('=') {
            Some((key, value)) => Ok((key.trim().to_owned(), value.trim().to_owned())),
            None => Err(format!("label {term:?} is no key=value")),
        })
        .collect()
}

/// Options of drivers: a key without `=` has an empty value.
pub(crate) fn options(terms: &[String]) -> BTreeMap<String, String> {
    let pair = |term: &String| {
        let (key, value) = term.split_once('=').unwrap_or((term, ""));
        (key.to_owned(), value.to_owned())
    };
    terms.iter().map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs() {
        let terms = |terms: &[&str]| terms.iter().map(ToString::to_string).collect::<Vec<_>>();
        let parsed = labels(&terms(&[" a = b=c ", "d="])).unwrap();
        assert_eq!(
            parsed.into_iter().collect::<Vec<_>>(),
            [("a".to_owned(), "b=c".to_owned()), ("d".to_owned(), String::new())]
        );
        assert!(labels(&terms(&["a"])).unwrap_err().contains("\"a\" is no key=value"));
        assert_eq!(options(&terms(&["a=b=c", "d"]))["d"], "");
    }
}
