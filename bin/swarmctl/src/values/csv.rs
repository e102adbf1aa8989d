//! List flags: each occurrence is one record of comma-separated values.

/// The values of one occurrence. An empty argument is an empty list, and still says that the flag was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct List(pub(crate) Vec<String>);

impl std::str::FromStr for List {
    type Err = String;
    fn from_str(text: &str) -> Result<List, String> {
        parse(text).map(List)
    }
}

/// Joins the occurrences of a flag; `None` if it was not given.
pub(crate) fn join(lists: Option<&Vec<List>>) -> Option<Vec<String>> {
    Some(lists?.iter().flat_map(|list| list.0.iter().cloned()).collect())
}

fn parse(text: &str) -> Result<Vec<String>, String> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    swarm_placement::csv::fields(text).ok_or_else(|| {
        format!("misplaced quotation mark in {text:?} (a field with commas is quoted as a whole)")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records() {
        let check = |text: &str, fields: &[&str]| assert_eq!(parse(text).unwrap(), fields, "{text}");
        check("", &[]);
        check("A=1,B=2", &["A=1", "B=2"]);
        check("\"A=1,2\"", &["A=1,2"]);
        check("\"a\"\"b\",c", &["a\"b", "c"]);
        check(" a, b", &[" a", " b"]);
        check("a,,b,", &["a", "", "b", ""]);
        for bad in ["a\"b", "\"a", "\"a\"b"] {
            assert!(parse(bad).unwrap_err().contains("quotation mark"), "{bad}");
        }
    }

    #[test]
    fn occurrences_add_up_and_an_empty_one_counts_as_given() {
        let list = |text: &str| text.parse::<List>().unwrap();
        assert_eq!(join(None), None);
        assert_eq!(join(Some(&vec![list("")])), Some(vec![]));
        assert_eq!(join(Some(&vec![list("a,b"), list("c")])).unwrap(), ["a", "b", "c"]);
    }
}
