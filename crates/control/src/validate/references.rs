//! References to secrets and configs inside a container spec.

use std::collections::BTreeSet;

use swarm_api::v1::{
    ConfigReference, ContainerSpec, SecretReference, config_reference, privileges, secret_reference,
};

use crate::error::{Error, Result};

/// References to secrets: id, name and target given, file names unique.
pub(crate) fn secrets(references: &[SecretReference]) -> Result<()> {
    let mut files = BTreeSet::new();
    for reference in references {
        if reference.secret_id.is_empty() || reference.secret_name.is_empty() {
            return Err(Error::argument("malformed secret reference"));
        }
        let Some(secret_reference::Target::File(file)) = &reference.target else {
            return Err(Error::argument("malformed secret reference, no target provided"));
        };
        if file.name.is_empty() {
            return Err(Error::argument(
                "malformed file secret reference, invalid target file name provided",
            ));
        }
        if !files.insert(file.name.as_str()) {
            return Err(Error::argument(format!(
                "secret references '{}' have a conflicting target: '{}'",
                reference.secret_name, file.name
            )));
        }
    }
    Ok(())
}

/// References to configs: as secrets, but a runtime target needs no file.
pub(crate) fn configs(references: &[ConfigReference]) -> Result<()> {
    let mut files = BTreeSet::new();
    for reference in references {
        if reference.config_id.is_empty() || reference.config_name.is_empty() {
            return Err(Error::argument("malformed config reference"));
        }
        match &reference.target {
            None => return Err(Error::argument("malformed config reference, no target provided")),
            Some(config_reference::Target::Runtime(_)) => {}
            Some(config_reference::Target::File(file)) if file.name.is_empty() => {
                return Err(Error::argument(
                    "malformed file config reference, invalid target file name provided",
                ));
            }
            Some(config_reference::Target::File(file)) => {
                if !files.insert(file.name.as_str()) {
                    return Err(Error::argument(format!(
                        "config references '{}' have a conflicting target: '{}'",
                        reference.config_name, file.name
                    )));
                }
            }
        }
    }
    Ok(())
}

/// A config that serves as credential spec has a reference with a runtime target.
pub(crate) fn credential(container: &ContainerSpec) -> Result<()> {
    let credential = container.privileges.as_ref().and_then(|p| p.credential_spec.as_ref());
    if let Some(privileges::credential_spec::Source::Config(id)) = credential.and_then(|c| c.source.as_ref())
    {
        let found = container.configs.iter().any(|reference| {
            reference.config_id == *id
                && matches!(reference.target, Some(config_reference::Target::Runtime(_)))
        });
        if !found {
            return Err(Error::argument(format!(
                "CredentialSpec config {id} is not referenced with a runtime target"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use swarm_api::v1::{
        ConfigReference, FileTarget, Privileges, RuntimeTarget, SecretReference, privileges::CredentialSpec,
    };

    fn file(name: &str) -> FileTarget {
        FileTarget { name: name.into(), ..Default::default() }
    }

    /// References to secrets and to configs, by id and file: the same rules hold for both.
    #[track_caller]
    fn check(references: &[(&str, &str)], expected: Option<&str>) {
        let mut container = ContainerSpec::default();
        for (id, name) in references {
            container.secrets.push(SecretReference {
                secret_id: (*id).into(),
                secret_name: format!("name-{id}"),
                target: Some(secret_reference::Target::File(file(name))),
            });
            container.configs.push(ConfigReference {
                config_id: (*id).into(),
                config_name: format!("name-{id}"),
                target: Some(config_reference::Target::File(file(name))),
            });
        }
        for (kind, found) in
            [("secret", secrets(&container.secrets)), ("config", configs(&container.configs))]
        {
            let expected = expected.map(|text| Error::argument(text.replace("KIND", kind)));
            assert_eq!(found.err(), expected);
        }
    }

    #[test]
    fn every_file_of_a_container_has_one_source() {
        check(&[], None);
        check(&[("a", "x"), ("b", "y")], None);
        check(&[("a", "x"), ("a", "y")], None);
        let twice = |name: &str| format!("KIND references 'name-{name}' have a conflicting target: 'x'");
        check(&[("a", "x"), ("b", "x")], Some(&twice("b")));
        check(&[("a", "x"), ("a", "x")], Some(&twice("a")));
    }

    #[test]
    fn a_file_has_a_name_and_it_may_be_an_odd_one() {
        for odd in ["../x", "/etc/x", " ", "a b", ".", "x\\y"] {
            check(&[("a", odd)], None);
        }
        check(&[("a", "")], Some("malformed file KIND reference, invalid target file name provided"));
    }

    #[test]
    fn a_reference_says_what_and_where() {
        let text = |kind: &str| Some(Error::argument(format!("malformed {kind} reference")));
        let nowhere =
            |kind: &str| Some(Error::argument(format!("malformed {kind} reference, no target provided")));
        for (id, name) in [("", "n"), ("i", "")] {
            let (id, name) = (id.to_owned(), name.to_owned());
            let secret = SecretReference { secret_id: id.clone(), secret_name: name.clone(), target: None };
            let config = ConfigReference { config_id: id, config_name: name, target: None };
            let container =
                ContainerSpec { secrets: vec![secret], configs: vec![config], ..Default::default() };
            assert_eq!(secrets(&container.secrets).err(), text("secret"));
            assert_eq!(configs(&container.configs).err(), text("config"));
        }
        let secret = SecretReference { secret_id: "i".into(), secret_name: "n".into(), target: None };
        let config = ConfigReference { config_id: "i".into(), config_name: "n".into(), target: None };
        let container = ContainerSpec { secrets: vec![secret], configs: vec![config], ..Default::default() };
        assert_eq!(secrets(&container.secrets).err(), nowhere("secret"));
        assert_eq!(configs(&container.configs).err(), nowhere("config"));
    }

    #[test]
    fn a_credential_spec_in_a_config_is_referenced_for_the_runtime() {
        let with = |target: Option<config_reference::Target>| {
            let source = Some(privileges::credential_spec::Source::Config("c".into()));
            let credential_spec = Some(CredentialSpec { source });
            let reference = |target| ConfigReference {
                config_id: "c".into(),
                config_name: "n".into(),
                target: Some(target),
            };
            let container = ContainerSpec {
                privileges: Some(Privileges { credential_spec, ..Default::default() }),
                configs: target.into_iter().map(reference).collect(),
                ..Default::default()
            };
            configs(&container.configs).and_then(|()| credential(&container))
        };
        let refused = Err(Error::argument("CredentialSpec config c is not referenced with a runtime target"));
        assert_eq!(with(None), refused);
        assert_eq!(with(Some(config_reference::Target::File(file("x")))), refused);
        assert_eq!(with(Some(config_reference::Target::Runtime(RuntimeTarget {}))), Ok(()));
    }
}
