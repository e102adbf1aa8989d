//! Networks that tasks are attached to: `NETWORK`, or `name=NETWORK,alias=NAME,driver-opt=KEY=VALUE`.

use std::collections::BTreeMap;

/// A network by its name or id, and how tasks are attached to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Attachment {
    pub(crate) network: String,
    /// Names that the tasks have there.
    pub(crate) aliases: Vec<String>,
    /// Options for the network's driver.
    pub(crate) options: BTreeMap<String, String>,
}

/// Reads the networks of one occurrence of a flag: several in the short form, or one in the long form.
pub(crate) fn parse_all(fields: &[String]) -> Result<Vec<Attachment>, String> {
    let long = fields.iter().any(|field| field.contains('='));
    if long {
        return Ok(vec![parse_fields(fields)?]);
    }
    let short = |field: &String| match field.trim() {
        "" => Err(format!("network {field:?}: expected its name or ID")),
        name => Ok(Attachment { network: name.to_owned(), ..Default::default() }),
    };
    fields.iter().map(short).collect()
}

fn parse_fields(fields: &[String]) -> Result<Attachment, String> {
    let bad = |why: &str| format!("network {:?}: {why}", fields.join(","));
    let mut attachment = Attachment::default();
    for field in fields {
        let Some((key, value)) = field.split_once('=').filter(|(_, value)| !value.is_empty()) else {
            return Err(bad(&format!("{field:?} is no key=value")));
        };
        match key.trim() {
            "name" => value.clone_into(&mut attachment.network),
            "alias" => attachment.aliases.push(value.to_owned()),
            "driver-opt" => {
                let Some((option, value)) = value.split_once('=') else {
                    return Err(bad(&format!("driver-opt {value:?} is no key=value")));
                };
                attachment.options.insert(option.to_owned(), value.to_owned());
            }
            _ => return Err(bad(&format!("{key:?} is not one of name, alias, driver-opt"))),
        }
    }
    if attachment.network.is_empty() {
        return Err(bad("name=NETWORK is missing"));
    }
    Ok(attachment)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Attachment>, String> {
        let fields: Vec<String> = text.split(',').map(str::to_owned).collect();
        parse_all(&fields)
    }

    #[test]
    fn networks() {
        let plain = |name: &str| Attachment { network: name.into(), ..Default::default() };
        assert_eq!(read("lan"), Ok(vec![plain("lan")]));
        assert_eq!(read("lan,host"), Ok(vec![plain("lan"), plain("host")]));
        assert_eq!(read("name=lan"), Ok(vec![plain("lan")]));
        let full = Attachment {
            aliases: vec!["db".into(), "store".into()],
            options: BTreeMap::from([("mtu".into(), "1400".into()), ("x".into(), "a=b".into())]),
            ..plain("lan")
        };
        assert_eq!(
            read("name=lan,alias=db,alias=store,driver-opt=mtu=1400,driver-opt=x=a=b"),
            Ok(vec![full])
        );
        for (bad, why) in [
            ("", "expected its name or ID"),
            ("alias=db", "name=NETWORK is missing"),
            ("name=", "\"name=\" is no key=value"),
            ("name=lan,db", "\"db\" is no key=value"),
            ("name=lan,ip=10.0.0.1", "\"ip\" is not one of name, alias, driver-opt"),
            ("name=lan,driver-opt=mtu", "driver-opt \"mtu\" is no key=value"),
        ] {
            let error = read(bad).unwrap_err();
            assert!(error.starts_with(&format!("network {bad:?}: ")) && error.contains(why), "{error}");
        }
    }
}
