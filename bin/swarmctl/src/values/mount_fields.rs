//! Mounts in the long form: `type=bind,source=/srv,target=/data,readonly`.

use swarm_api::v1::mount::bind_options::Propagation;
use swarm_api::v1::mount::{BindOptions, Consistency, TmpfsOptions, Type, VolumeOptions};
use swarm_api::v1::{Driver, Mount};

use super::{boolean, size};

/// The types by their names.
const TYPES: [(&str, Type); 5] = [
    ("bind", Type::Bind),
    ("volume", Type::Volume),
    ("tmpfs", Type::Tmpfs),
    ("npipe", Type::Npipe),
    ("cluster", Type::Cluster),
];

const PROPAGATIONS: [(&str, Propagation); 6] = [
    ("rprivate", Propagation::Rprivate),
    ("private", Propagation::Private),
    ("rshared", Propagation::Rshared),
    ("shared", Propagation::Shared),
    ("rslave", Propagation::Rslave),
    ("slave", Propagation::Slave),
];

const CONSISTENCIES: [(&str, Consistency); 4] = [
    ("default", Consistency::Default),
    ("consistent", Consistency::Consistent),
    ("cached", Consistency::Cached),
    ("delegated", Consistency::Delegated),
];

/// Reads one mount from its fields. Without a type it is a volume.
pub(crate) fn parse(fields: &[String]) -> Result<Mount, String> {
    let bad = |why: String| format!("mount {:?}: {why}", fields.join(","));
    let mut mount = Mount { r#type: Type::Volume as i32, ..Default::default() };
    let mut special = Vec::new();
    for field in fields {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (field.as_str(), None),
        };
        let field = Field { key, value };
        if !common(&mut mount, field).map_err(bad)? {
            special.push(field);
        }
    }
    let kind = mount.r#type();
    for field in special {
        let known = match kind {
            Type::Bind => bind(mount.bind_options.get_or_insert_default(), field),
            Type::Volume => volume(mount.volume_options.get_or_insert_default(), field),
            Type::Tmpfs => tmpfs(mount.tmpfs_options.get_or_insert_default(), field),
            Type::Npipe | Type::Cluster => Ok(false),
        };
        if !known.map_err(bad)? {
            return Err(bad(format!("mounts of type {} have no field {:?}", name(kind), field.key)));
        }
    }
    match (kind, mount.source.is_empty(), mount.target.is_empty()) {
        (_, _, true) => Err(bad("target is missing".to_owned())),
        (Type::Bind | Type::Npipe | Type::Cluster, true, _) => {
            Err(bad(format!("source is missing: mounts of type {} need one", name(kind))))
        }
        (Type::Tmpfs, false, _) => Err(bad("mounts of type tmpfs have no source".to_owned())),
        _ => Ok(mount),
    }
}

fn name(kind: Type) -> &'static str {
    TYPES.iter().find(|(_, known)| *known == kind).map_or("", |(name, _)| *name)
}

#[derive(Clone, Copy)]
struct Field<'a> {
    key: &'a str,
    value: Option<&'a str>,
}

impl<'a> Field<'a> {
    fn text(self) -> Result<&'a str, String> {
        let value = self.value.filter(|value| !value.is_empty());
        value.ok_or_else(|| format!("{} needs a value", self.key))
    }

    /// A switch is on where it has no value.
    fn switch(self) -> Result<bool, String> {
        self.value.map_or(Ok(true), boolean).map_err(|why| format!("{}: {why}", self.key))
    }

    fn one_of<T: Copy>(self, known: &[(&str, T)]) -> Result<T, String> {
        let text = self.text()?;
        known.iter().find(|(name, _)| *name == text).map(|(_, value)| *value).ok_or_else(|| {
            let names: Vec<_> = known.iter().map(|(name, _)| *name).collect();
            format!("{} {text:?} is not one of {}", self.key, names.join(", "))
        })
    }

    /// `key=value` behind the field's own name.
    fn pair(self) -> Result<(String, String), String> {
        let text = self.text()?;
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        Ok((key.to_owned(), value.to_owned()))
    }
}

/// Fields that every type has; `false` for any other.
fn common(mount: &mut Mount, field: Field<'_>) -> Result<bool, String> {
    match field.key {
        "type" => mount.r#type = field.one_of(&TYPES)? as i32,
        "source" | "src" => field.text()?.clone_into(&mut mount.source),
        "target" | "dst" | "destination" => field.text()?.clone_into(&mut mount.target),
        "readonly" | "ro" => mount.readonly = field.switch()?,
        // Stored, as Docker does; engines on Linux make nothing of it.
        "consistency" => mount.consistency = field.one_of(&CONSISTENCIES)? as i32,
        _ => return Ok(false),
    }
    Ok(true)
}

fn bind(options: &mut BindOptions, field: Field<'_>) -> Result<bool, String> {
    match field.key {
        "bind-propagation" => options.propagation = field.one_of(&PROPAGATIONS)? as i32,
        "bind-nonrecursive" => options.nonrecursive = field.switch()?,
        "bind-create-src" => options.createmountpoint = field.switch()?,
        "bind-recursive" => match field.text()? {
            "enabled" => {}
            "disabled" => options.nonrecursive = true,
            "writable" => options.readonlynonrecursive = true,
            "readonly" => options.readonlyforcerecursive = true,
            other => {
                let known = "enabled, disabled, writable, readonly";
                return Err(format!("bind-recursive {other:?} is not one of {known}"));
            }
        },
        _ => return Ok(false),
    }
    Ok(true)
}

fn volume(options: &mut VolumeOptions, field: Field<'_>) -> Result<bool, String> {
    let driver = |options: &mut VolumeOptions, set: &dyn Fn(&mut Driver)| {
        set(options.driver_config.get_or_insert_default());
    };
    match field.key {
        "volume-nocopy" => options.nocopy = field.switch()?,
        "volume-subpath" => field.text()?.clone_into(&mut options.subpath),
        "volume-label" => options.labels.extend([field.pair()?]),
        "volume-driver" => {
            let name = field.text()?;
            driver(options, &|driver| name.clone_into(&mut driver.name));
        }
        "volume-opt" => {
            let pair = field.pair()?;
            driver(options, &|driver| driver.options.extend([pair.clone()]));
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn tmpfs(options: &mut TmpfsOptions, field: Field<'_>) -> Result<bool, String> {
    match field.key {
        "tmpfs-size" => options.size_bytes = size::parse(field.text()?)?,
        "tmpfs-mode" => {
            let text = field.text()?;
            options.mode =
                u32::from_str_radix(text, 8).map_err(|_| format!("tmpfs-mode {text:?} is no octal mode"))?;
        }
        // As mount(8) has them; several are joined.
        "tmpfs-opt" => {
            let text = field.text()?;
            let joined = if options.options.is_empty() {
                text.to_owned()
            } else {
                format!("{},{text}", options.options)
            };
            options.options = joined;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Mount, String> {
        let fields: Vec<String> = text.split(',').map(str::to_owned).collect();
        parse(&fields)
    }

    #[test]
    fn binds() {
        let mount =
            read("type=bind,source=/s,target=/t,readonly,bind-propagation=rslave,bind-create-src").unwrap();
        assert_eq!((mount.r#type(), mount.source.as_str(), mount.target.as_str()), (Type::Bind, "/s", "/t"));
        assert!(mount.readonly);
        let options = mount.bind_options.unwrap();
        assert_eq!((options.propagation(), options.createmountpoint), (Propagation::Rslave, true));
        let recursive = |how: &str| {
            let mount = read(&format!("type=bind,src=/s,dst=/t,bind-recursive={how}")).unwrap();
            let options = mount.bind_options.unwrap();
            (options.nonrecursive, options.readonlynonrecursive, options.readonlyforcerecursive)
        };
        assert_eq!(recursive("enabled"), (false, false, false));
        assert_eq!(recursive("disabled"), (true, false, false));
        assert_eq!(recursive("writable"), (false, true, false));
        assert_eq!(recursive("readonly"), (false, false, true));
        assert_eq!(read("type=bind,src=/s,dst=/t,ro=false").unwrap().bind_options, None);
    }

    #[test]
    fn volumes() {
        let mount = read(
            "source=data,target=/t,volume-nocopy,volume-label=a=b,volume-driver=local,volume-opt=o=size=1m,volume-subpath=x",
        )
        .unwrap();
        assert_eq!((mount.r#type(), mount.source.as_str()), (Type::Volume, "data"));
        let options = mount.volume_options.unwrap();
        assert_eq!(
            (options.nocopy, options.labels["a"].as_str(), options.subpath.as_str()),
            (true, "b", "x")
        );
        let driver = options.driver_config.unwrap();
        assert_eq!((driver.name.as_str(), driver.options["o"].as_str()), ("local", "size=1m"));
        assert_eq!(read("target=/t").unwrap().source, "");
        for (name, expected) in CONSISTENCIES {
            let mount = read(&format!("type=bind,source=/s,target=/t,consistency={name}")).unwrap();
            assert_eq!(mount.consistency(), expected);
        }
    }

    #[test]
    fn memory_and_others() {
        let mount = read("type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1770,tmpfs-opt=exec,tmpfs-opt=uid=5")
            .unwrap();
        let options = mount.tmpfs_options.unwrap();
        assert_eq!(
            (options.size_bytes, options.mode, options.options.as_str()),
            (1 << 20, 0o1770, "exec,uid=5")
        );
        assert_eq!(read("type=npipe,source=a,target=b").unwrap().r#type(), Type::Npipe);
        assert_eq!(read("type=cluster,source=group:g,target=/b").unwrap().r#type(), Type::Cluster);
    }

    #[test]
    fn mistakes_are_told() {
        for (text, why) in [
            ("type=disk,target=/t", "type \"disk\" is not one of bind, volume, tmpfs, npipe, cluster"),
            ("type=bind,source=/s", "target is missing"),
            ("type=bind,target=/t", "source is missing: mounts of type bind need one"),
            ("type=tmpfs,source=x,target=/t", "mounts of type tmpfs have no source"),
            (
                "type=bind,source=/s,target=/t,volume-nocopy",
                "mounts of type bind have no field \"volume-nocopy\"",
            ),
            ("target=/t,nonsense=1", "mounts of type volume have no field \"nonsense\""),
            ("target=", "target needs a value"),
            (
                "target=/t,consistency=weak",
                "consistency \"weak\" is not one of default, consistent, cached, delegated",
            ),
            ("target=/t,readonly=perhaps", "readonly: expected true or false"),
            ("type=tmpfs,target=/t,tmpfs-mode=9", "tmpfs-mode \"9\" is no octal mode"),
            ("type=tmpfs,target=/t,tmpfs-size=x", "no amount of memory"),
            (
                "type=bind,source=/s,target=/t,bind-propagation=x",
                "bind-propagation \"x\" is not one of rprivate,",
            ),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.starts_with(&format!("mount {text:?}: ")) && error.contains(why), "{error}");
        }
    }
}
