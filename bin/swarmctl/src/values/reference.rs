//! References to secrets and configs: `name[:target]`.

/// A secret or config by name, and the file it becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reference {
    pub(crate) name: String,
    pub(crate) target: String,
}

/// Reads a reference; the target is the name if it is left out.
pub(crate) fn parse(text: &str) -> Result<Reference, String> {
    let mut parts = text.splitn(3, ':');
    let name = parts.next().unwrap_or_default().trim();
    let target = parts.next().map_or(name, str::trim);
    if name.is_empty() || target.is_empty() || parts.next().is_some() {
        return Err(format!("reference {text:?} is no name[:target]"));
    }
    Ok(Reference { name: name.to_owned(), target: target.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references() {
        let check = |text: &str, name: &str, target: &str| {
            assert_eq!(parse(text), Ok(Reference { name: name.into(), target: target.into() }));
        };
        check("s", "s", "s");
        check(" s : alias ", "s", "alias");
        for bad in ["", "s:", ":x", "a:b:c"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
