//! Native processes: the generic runtime of kind `process`.

use prost::{Message as _, Name as _};
use swarm_api::extensions;
use swarm_api::swarmd::ProcessSpec;
use swarm_api::v1::{
    GenericRuntimeSpec, ResourceReference, ResourceType, config_reference, secret_reference, task_spec,
};

use super::{duration, templates};
use crate::error::{Error, Result};

/// Resources that setrlimit(2) knows, without their prefix.
const RLIMITS: &[&str] = &[
    "as",
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

/// Signals by name, without their prefix.
const SIGNALS: &[&str] = &[
    "ABRT", "ALRM", "BUS", "CHLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "KILL", "PIPE", "PROF", "PWR",
    "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU", "URG", "USR1", "USR2",
    "VTALRM", "WINCH", "XCPU", "XFSZ",
];

/// The payload is a process that can be started, in the one encoding that peers would write too.
pub(crate) fn check(generic: &GenericRuntimeSpec) -> Result<()> {
    let payload = generic.payload.as_ref().ok_or_else(|| refuse("payload must be provided"))?;
    if payload.type_url.rsplit('/').next() != Some(ProcessSpec::full_name().as_str()) {
        return Err(refuse(&format!(
            "payload must be a {}, not {:?}",
            ProcessSpec::full_name(),
            payload.type_url
        )));
    }
    let process = ProcessSpec::decode(payload.value.as_slice())
        .map_err(|error| refuse(&format!("payload can't be decoded: {error}")))?;
    if process.encode_to_vec() != payload.value {
        return Err(refuse("payload is not encoded deterministically"));
    }
    spec(&process)?;
    files(&process)
}

/// References to the secrets and configs that a process's payload names, each once.
pub(super) fn references(runtime: Option<&task_spec::Runtime>) -> Vec<ResourceReference> {
    let Some(task_spec::Runtime::Generic(GenericRuntimeSpec { payload: Some(payload), .. })) = runtime else {
        return Vec::new();
    };
    let Ok(process) = ProcessSpec::decode(payload.value.as_slice()) else { return Vec::new() };
    let reference = |id: &str, kind: ResourceType| ResourceReference {
        resource_id: id.to_owned(),
        resource_type: kind as i32,
    };
    let secrets = process.secrets.iter().map(|r| reference(&r.secret_id, ResourceType::Secret));
    let configs = process.configs.iter().map(|r| reference(&r.config_id, ResourceType::Config));
    let mut found: Vec<ResourceReference> = Vec::new();
    for reference in secrets.chain(configs) {
        if !found.contains(&reference) {
            found.push(reference);
        }
    }
    found
}

/// As a container's, but the files are in directories of the task: names without slashes.
fn files(process: &ProcessSpec) -> Result<()> {
    super::references::secrets(&process.secrets)?;
    super::references::configs(&process.configs)?;
    let secrets = process.secrets.iter().filter_map(|reference| {
        let secret_reference::Target::File(file) = reference.target.as_ref()?;
        Some(Ok(("secret", &reference.secret_name, file)))
    });
    let configs = process.configs.iter().map(|reference| match &reference.target {
        Some(config_reference::Target::File(file)) => Ok(("config", &reference.config_name, file)),
        _ => Err(refuse(&format!("config {:?} must be a file", reference.config_name))),
    });
    for found in secrets.chain(configs) {
        let (kind, object, file) = found?;
        if file.name.contains(['/', '\0']) || matches!(file.name.as_str(), "." | "..") {
            return Err(refuse(&format!(
                "the file of {kind} {object:?} must be a name without slashes, and is {:?}",
                file.name
            )));
        }
        for (what, number) in [("user", &file.uid), ("group", &file.gid)] {
            if !number.is_empty() && number.parse::<u32>().is_err() {
                return Err(refuse(&format!(
                    "the {what} of the file of {kind} {object:?} must be a number, and is {number:?}"
                )));
            }
        }
    }
    Ok(())
}

fn spec(process: &ProcessSpec) -> Result<()> {
    if process.command.first().is_none_or(String::is_empty) {
        return Err(refuse("command must be provided"));
    }
    let texts = process.command.iter().chain(&process.args).chain(&process.env).chain([
        &process.dir,
        &process.user,
        &process.root,
    ]);
    if texts.into_iter().any(|text| text.contains('\0')) {
        return Err(refuse("a text contains a NUL character"));
    }
    for entry in &process.env {
        let name = entry.split('=').next().unwrap_or_default();
        if name.is_empty() {
            return Err(refuse(&format!("environment entry {entry:?} has no name")));
        }
    }
    templates::env(&process.env)?;
    if !process.dir.is_empty() && !process.dir.starts_with('/') {
        return Err(refuse(&format!("working directory {:?} is not absolute", process.dir)));
    }
    if !process.stop_signal.is_empty() && !is_signal(&process.stop_signal) {
        return Err(refuse(&format!("unknown stop signal {:?}", process.stop_signal)));
    }
    if !process.root.is_empty() && !process.root.starts_with('/') {
        return Err(refuse(&format!("root {:?} is not absolute", process.root)));
    }
    beside(process)?;
    duration::optional("ProcessSpec: stop grace period", process.stop_grace_period.as_ref())?;
    for limit in &process.rlimits {
        if RLIMITS.binary_search(&limit.name.as_str()).is_err() {
            return Err(refuse(&format!("unknown limit {:?}", limit.name)));
        }
        if limit.soft > limit.hard {
            return Err(refuse(&format!("soft limit of {} is above the hard one", limit.name)));
        }
    }
    Ok(())
}

/// Commands beside the process's own.
fn beside(process: &ProcessSpec) -> Result<()> {
    let of_words = |checked: std::result::Result<(), String>| checked.map_err(|error| refuse(&error));
    of_words(extensions::check_count(process.init_tasks.len()))?;
    for task in &process.init_tasks {
        of_words(extensions::check_words("init task", &task.words))?;
    }
    if !process.pre_stop.is_empty() {
        of_words(extensions::check_words("pre-stop command", &process.pre_stop))?;
    }
    let Some(check) = &process.healthcheck else { return Ok(()) };
    super::container::health("ProcessSpec", check)?;
    match check.test.split_first() {
        Some((kind, [])) if kind == "NONE" => Ok(()),
        Some((kind, words)) if kind == "CMD" => of_words(extensions::check_words("health check", words)),
        Some((kind, [script])) if kind == "CMD-SHELL" && !script.is_empty() && !script.contains('\0') => {
            Ok(())
        }
        _ => Err(refuse("a health check is CMD and words, or CMD-SHELL and a text")),
    }
}

/// A number from 1 to 64, or a name with or without `SIG`.
fn is_signal(text: &str) -> bool {
    if let Ok(number) = text.parse::<u8>() {
        return (1..=64).contains(&number);
    }
    let upper = text.to_ascii_uppercase();
    SIGNALS.binary_search(&upper.strip_prefix("SIG").unwrap_or(&upper)).is_ok()
}

fn refuse(reason: &str) -> Error {
    Error::argument(format!("ProcessSpec: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use swarm_api::swarmd::process_spec::Rlimit;
    use swarm_api::v1::{ConfigReference, FileTarget, RuntimeTarget, SecretReference};

    fn generic(process: &ProcessSpec) -> GenericRuntimeSpec {
        GenericRuntimeSpec {
            kind: "process".into(),
            payload: Some(prost_types::Any {
                type_url: ProcessSpec::type_url(),
                value: process.encode_to_vec(),
            }),
        }
    }

    fn check_with(change: impl FnOnce(&mut ProcessSpec), text: &str) {
        let mut process = ProcessSpec { command: vec!["sleep".into()], ..Default::default() };
        assert_eq!(check(&generic(&process)), Ok(()));
        change(&mut process);
        let error = check(&generic(&process)).unwrap_err();
        assert_eq!(error.code(), tonic::Code::InvalidArgument);
        assert!(error.to_string().contains(text), "{error}");
    }

    #[test]
    fn bad_processes_are_refused() {
        check_with(|p| p.command.clear(), "command must be provided");
        check_with(|p| p.command = vec![String::new()], "command must be provided");
        check_with(|p| p.args = vec!["a\0b".into()], "NUL");
        check_with(|p| p.env = vec!["=x".into()], "has no name");
        check_with(|p| p.env = vec!["A={{.Nope}}".into()], "no field Nope");
        check_with(|p| p.dir = "relative".into(), "is not absolute");
        check_with(|p| p.root = "relative".into(), "root \"relative\" is not absolute");
        check_with(|p| p.init_tasks = vec![Default::default()], "init task names no program");
        check_with(|p| p.init_tasks = vec![Default::default(); 33], "there are 33 init tasks; 32 may be");
        check_with(|p| p.pre_stop = vec!["a\0".into()], "pre-stop command holds a NUL");
        let test = |words: &[&str]| {
            let test = words.iter().map(|word| word.to_string()).collect();
            Some(swarm_api::v1::HealthConfig { test, ..Default::default() })
        };
        for bad in [&["CMD"][..], &["CMD-SHELL"], &["CMD-SHELL", "a", "b"], &["true"], &[], &["CMD", ""]] {
            let mut process = ProcessSpec { command: vec!["sleep".into()], ..Default::default() };
            process.healthcheck = test(bad);
            assert!(check(&generic(&process)).is_err(), "{bad:?}");
        }
        check_with(
            |p| p.healthcheck = Some(swarm_api::v1::HealthConfig { retries: -1, ..Default::default() }),
            "Retries",
        );
        check_with(|p| p.stop_signal = "SIGNOPE".into(), "unknown stop signal");
        check_with(|p| p.stop_signal = "65".into(), "unknown stop signal");
        check_with(
            |p| p.stop_grace_period = Some(prost_types::Duration { seconds: -1, nanos: 0 }),
            "stop grace period cannot be negative",
        );
        let limit = |name: &str, soft, hard| vec![Rlimit { name: name.into(), soft, hard }];
        check_with(|p| p.rlimits = limit("nope", 1, 1), "unknown limit");
        check_with(|p| p.rlimits = limit("nofile", 2, 1), "above the hard one");
        let secret = |name: &str, uid: &str| {
            let file = FileTarget { name: name.into(), uid: uid.into(), ..Default::default() };
            let target = Some(secret_reference::Target::File(file));
            vec![SecretReference { secret_id: "s".into(), secret_name: "pw".into(), target }]
        };
        let text = "the file of secret \"pw\" must be a name without slashes, and is \"/etc/pw\"";
        check_with(|p| p.secrets = secret("/etc/pw", ""), text);
        check_with(|p| p.secrets = secret("", ""), "invalid target file name provided");
        check_with(
            |p| p.secrets = secret("pw", "app"),
            "the user of the file of secret \"pw\" must be a number",
        );
        let target = Some(config_reference::Target::Runtime(RuntimeTarget {}));
        let config = ConfigReference { config_id: "c".into(), config_name: "n".into(), target };
        check_with(|p| p.configs = vec![config], "config \"n\" must be a file");
        assert!(["SIGTERM", "term", "9", "USR1"].iter().all(|s| is_signal(s)));
        assert!(RLIMITS.is_sorted() && SIGNALS.is_sorted());
    }

    #[test]
    fn what_the_payload_refers_to_is_listed_once() {
        let secret = SecretReference { secret_id: "s".into(), ..Default::default() };
        let config = ConfigReference { config_id: "c".into(), ..Default::default() };
        let process = ProcessSpec {
            secrets: vec![secret.clone(), secret],
            configs: vec![config],
            ..Default::default()
        };
        let runtime = task_spec::Runtime::Generic(generic(&process));
        let listed: Vec<_> = references(Some(&runtime))
            .into_iter()
            .map(|r| (r.resource_id.clone(), r.resource_type()))
            .collect();
        assert_eq!(listed, [("s".into(), ResourceType::Secret), ("c".into(), ResourceType::Config)]);
        assert_eq!(references(None), []);
    }

    #[test]
    fn payloads_are_of_our_type_and_encoded_in_one_way_only() {
        let mut spec = generic(&ProcessSpec { command: vec!["a".into()], ..Default::default() });
        // The number of log files, written although it is the default.
        spec.payload.as_mut().unwrap().value.extend([0x58, 0x00]);
        assert!(check(&spec).unwrap_err().to_string().contains("deterministically"));
        spec.payload.as_mut().unwrap().value = vec![0xff];
        assert!(check(&spec).unwrap_err().to_string().contains("can't be decoded"));
        spec.payload.as_mut().unwrap().type_url = "types.docker.com/RuntimePlugin".into();
        assert!(check(&spec).unwrap_err().to_string().contains("must be a swarmd.v1.ProcessSpec"));
    }
}
