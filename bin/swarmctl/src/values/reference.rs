//! References to secrets and configs: `name[:target]`, or `source=name,target=file,uid=0,gid=0,mode=0444`.

/// A secret or config by name, and the file it becomes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Reference {
    pub(crate) name: String,
    pub(crate) target: String,
    /// User and group, as numbers; what is usual where none was given.
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    /// Permission bits.
    pub(crate) mode: Option<u32>,
}

/// Reads the references of one occurrence of a flag: several in the short form, or one in the long form.
pub(crate) fn parse_all(fields: &[String]) -> Result<Vec<Reference>, String> {
    let long = fields.iter().any(|field| field.starts_with("source=") || field.starts_with("src="));
    if long { Ok(vec![parse_fields(fields)?]) } else { fields.iter().map(|field| parse(field)).collect() }
}

/// Reads the short form; the target is the name if it is left out.
fn parse(text: &str) -> Result<Reference, String> {
    let mut parts = text.splitn(3, ':');
    let name = parts.next().unwrap_or_default().trim();
    let target = parts.next().map_or(name, str::trim);
    if name.is_empty() || target.is_empty() || parts.next().is_some() {
        return Err(format!("reference {text:?} is no name[:target]"));
    }
    Ok(Reference { name: name.to_owned(), target: target.to_owned(), ..Default::default() })
}

fn parse_fields(fields: &[String]) -> Result<Reference, String> {
    let bad = |why: &str| format!("reference {:?}: {why}", fields.join(","));
    let mut reference = Reference::default();
    for field in fields {
        let Some((key, value)) = field.split_once('=').filter(|(_, value)| !value.is_empty()) else {
            return Err(bad(&format!("{field:?} is no key=value")));
        };
        let id = || value.parse().map(Some).map_err(|_| bad(&format!("{key} {value:?} is no number")));
        match key {
            "source" | "src" => value.clone_into(&mut reference.name),
            "target" | "dst" | "destination" => value.clone_into(&mut reference.target),
            "uid" => reference.uid = id()?,
            "gid" => reference.gid = id()?,
            "mode" => match u32::from_str_radix(value, 8) {
                Ok(mode @ ..=0o777) => reference.mode = Some(mode),
                _ => return Err(bad(&format!("mode {value:?} is not one of 0 to 0777"))),
            },
            _ => return Err(bad(&format!("{key:?} is not one of source, target, uid, gid, mode"))),
        }
    }
    if reference.target.is_empty() {
        reference.target.clone_from(&reference.name);
    }
    Ok(reference)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Reference>, String> {
        let fields: Vec<String> = text.split(',').map(str::to_owned).collect();
        parse_all(&fields)
    }

    fn reference(name: &str, target: &str) -> Reference {
        Reference { name: name.into(), target: target.into(), ..Default::default() }
    }

    #[test]
    fn references() {
        assert_eq!(read("s"), Ok(vec![reference("s", "s")]));
        assert_eq!(read(" s : alias ,b"), Ok(vec![reference("s", "alias"), reference("b", "b")]));
        for bad in ["", "s:", ":x", "a:b:c"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_long_form_says_whose_the_file_is() {
        assert_eq!(read("source=s"), Ok(vec![reference("s", "s")]));
        let full =
            Reference { uid: Some(1000), gid: Some(20), mode: Some(0o440), ..reference("s", "/etc/pw") };
        assert_eq!(read("source=s,target=/etc/pw,uid=1000,gid=20,mode=0440"), Ok(vec![full]));
        for (bad, why) in [
            ("source=s,mode=9", "mode \"9\" is not one of 0 to 0777"),
            ("source=s,mode=4777", "mode \"4777\" is not one of 0 to 0777"),
            ("source=s,uid=app", "uid \"app\" is no number"),
            ("source=s,owner=me", "\"owner\" is not one of source, target, uid, gid, mode"),
            ("source=s,other", "\"other\" is no key=value"),
            ("source=", "\"source=\" is no key=value"),
        ] {
            let error = read(bad).unwrap_err();
            assert!(error.starts_with(&format!("reference {bad:?}: ")) && error.contains(why), "{error}");
        }
    }
}
