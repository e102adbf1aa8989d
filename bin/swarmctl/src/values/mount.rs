//! Mounts: binds, volumes, memory.

use swarm_api::v1::Mount;
use swarm_api::v1::mount::{TmpfsOptions, Type};

fn mount(kind: Type, source: &str, target: &str) -> Mount {
    Mount { r#type: kind as i32, source: source.to_owned(), target: target.to_owned(), ..Default::default() }
}

/// Reads `source:target`, split at the first colon.
pub(crate) fn bind(text: &str) -> Result<Mount, String> {
    let pair = text.split_once(':').filter(|(source, target)| !source.is_empty() && !target.is_empty());
    let (source, target) = pair.ok_or_else(|| format!("mount {text:?} is no source:target"))?;
    Ok(mount(Type::Bind, source, target))
}

/// Reads `source:target` of a named pipe.
pub(crate) fn npipe(text: &str) -> Result<Mount, String> {
    bind(text).map(|pipe| Mount { r#type: Type::Npipe as i32, ..pipe })
}

/// Reads the target of an anonymous volume.
pub(crate) fn volume(text: &str) -> Result<Mount, String> {
    if text.contains(':') || text.is_empty() {
        return Err(format!("volume {text:?}: expected only a target, without a colon"));
    }
    Ok(mount(Type::Volume, "", text))
}

/// Reads `target[:options]`.
pub(crate) fn tmpfs(text: &str) -> Result<Mount, String> {
    let bad = |why: &str| format!("tmpfs {text:?}: {why}");
    let (target, options) = match text.split_once(':') {
        Some((target, options)) => (target, Some(options)),
        None => (text, None),
    };
    if !target.starts_with('/') {
        return Err(bad("the target must be absolute"));
    }
    let mut mount = mount(Type::Tmpfs, "", target);
    let Some(options) = options else { return Ok(mount) };
    if options.contains(':') {
        return Err(bad("expected target[:options]"));
    }
    let mut tmpfs = TmpfsOptions::default();
    for option in options.split(',') {
        match option.split_once('=') {
            Some(("size", size)) => {
                tmpfs.size_bytes = self::size(size).ok_or_else(|| {
                    bad(&format!("{size:?} is no size: expected a number, and k, m or g behind it"))
                })?;
            }
            Some(("mode", mode)) => {
                tmpfs.mode =
                    u32::from_str_radix(mode, 8).map_err(|_| bad(&format!("{mode:?} is no octal mode")))?;
            }
            None if option == "ro" || option == "rw" => mount.readonly = option == "ro",
            None if option == "exec" || option == "noexec" => option.clone_into(&mut tmpfs.options),
            _ => {
                let known = "size=…, mode=…, ro, rw, exec, noexec";
                return Err(bad(&format!("{option:?} is not one of {known}")));
            }
        }
    }
    mount.tmpfs_options = Some(tmpfs);
    Ok(mount)
}

fn size(text: &str) -> Option<i64> {
    let (number, shift) = match text.as_bytes().last()? {
        b'k' => (&text[..text.len() - 1], 10),
        b'm' => (&text[..text.len() - 1], 20),
        b'g' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    number.parse::<i64>().ok().filter(|n| *n >= 0)?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binds_and_volumes() {
        let parsed = bind("/a:/b:ro").unwrap();
        assert_eq!((parsed.source.as_str(), parsed.target.as_str()), ("/a", "/b:ro"));
        assert_eq!(parsed.r#type(), Type::Bind);
        assert_eq!(npipe("a:b").unwrap().r#type(), Type::Npipe);
        assert_eq!(volume("/data").unwrap().target, "/data");
        for bad in ["x", ":x", "x:"] {
            assert!(bind(bad).is_err(), "{bad}");
        }
        assert!(volume("a:b").is_err());
    }

    #[test]
    fn memory_mounts() {
        let plain = tmpfs("/t").unwrap();
        assert_eq!((plain.r#type(), plain.tmpfs_options), (Type::Tmpfs, None));
        let full = tmpfs("/t:size=1m,mode=700,ro,noexec").unwrap();
        let options = full.tmpfs_options.unwrap();
        assert!(full.readonly);
        assert_eq!((options.size_bytes, options.mode, options.options.as_str()), (1 << 20, 0o700, "noexec"));
        for bad in ["t", "/t:foo", "/t:size=1x", "/t:size=", "/t:a:b", "/t:mode=9", "/t:"] {
            assert!(tmpfs(bad).is_err(), "{bad}");
        }
    }
}
