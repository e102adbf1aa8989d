//! GPUs: `2`, `all`, `device=NAME`, `kind=KIND`, or several of these.

use swarm_api::extensions::container::GPU_KIND;

/// The GPUs of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gpus {
    /// Their kind among the generic resources.
    pub(crate) kind: String,
    /// How many: nothing said, or all of a node (`Some(None)`).
    pub(crate) count: Option<Option<i64>>,
    /// Those that are wanted by name.
    pub(crate) devices: Vec<String>,
}

/// Reads the fields of one occurrence; none of them, `none` or `0` is no GPU.
pub(crate) fn parse(fields: &[String]) -> Result<Option<Gpus>, String> {
    let wrong = |why: String| {
        format!("--gpus: {why}: expected a number, all, device=NAME, kind=KIND, or several of these")
    };
    let mut gpus = Gpus { kind: GPU_KIND.to_owned(), count: None, devices: Vec::new() };
    if matches!(fields, [] | [_]) && fields.first().is_none_or(|one| one == "none" || one == "0") {
        return Ok(None);
    }
    for field in fields {
        match field.split_once('=') {
            Some(("kind", kind)) if !kind.trim().is_empty() && !kind.contains('=') => {
                kind.trim().clone_into(&mut gpus.kind);
            }
            Some(("device", name)) if !name.is_empty() => {
                if gpus.devices.iter().any(|known| known == name) {
                    return Err(wrong(format!("device {name:?} is there twice")));
                }
                gpus.devices.push(name.to_owned());
            }
            Some(("count", number)) => set(&mut gpus.count, number).map_err(wrong)?,
            None => set(&mut gpus.count, field).map_err(wrong)?,
            Some(_) => return Err(wrong(format!("{field:?} means nothing here"))),
        }
    }
    match (&gpus.count, gpus.devices.is_empty()) {
        (Some(None), false) => Err(wrong("all of them, and some by name".to_owned())),
        // A kind alone is one of that kind.
        (None, true) => Ok(Some(Gpus { count: Some(Some(1)), ..gpus })),
        _ => Ok(Some(gpus)),
    }
}

fn set(count: &mut Option<Option<i64>>, text: &str) -> Result<(), String> {
    if count.is_some() {
        return Err("two numbers".to_owned());
    }
    *count = Some(match text {
        "all" | "-1" => None,
        _ => {
            let number = text.parse::<u32>().ok().filter(|number| *number > 0);
            Some(i64::from(number.ok_or_else(|| format!("{text:?} is no number of GPUs"))?))
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Option<Gpus>, String> {
        parse(&text.parse::<crate::values::List>().unwrap().0)
    }

    #[test]
    fn gpus_are_counted_or_named() {
        let gpus = |kind: &str, count, devices: &[&str]| {
            let devices = devices.iter().map(|name| (*name).to_owned()).collect();
            Ok(Some(Gpus { kind: kind.into(), count, devices }))
        };
        for (text, expected) in [
            ("2", gpus("gpu", Some(Some(2)), &[])),
            ("all", gpus("gpu", Some(None), &[])),
            ("device=GPU-1,device=GPU-2", gpus("gpu", None, &["GPU-1", "GPU-2"])),
            ("device=GPU-1,1", gpus("gpu", Some(Some(1)), &["GPU-1"])),
            ("kind=a100", gpus("a100", Some(Some(1)), &[])),
            ("kind=a100,count=4", gpus("a100", Some(Some(4)), &[])),
            ("all,kind=a100", gpus("a100", Some(None), &[])),
            ("none", Ok(None)),
            ("0", Ok(None)),
            ("", Ok(None)),
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for bad in [
            "some",
            "-2",
            "1,2",
            "0,kind=a",
            "kind=",
            "device=",
            "colour=red",
            "all,device=x",
            "device=x,device=x",
            "1.5",
        ] {
            let error = read(bad).unwrap_err();
            assert!(error.contains("expected a number, all, device=NAME"), "{bad}: {error}");
        }
    }
}
