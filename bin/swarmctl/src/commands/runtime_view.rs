//! What a task runs, on the pages of services and tasks.

use swarm_api::extensions::{ContainerExtensions, Steps};
use swarm_api::swarmd::ProcessSpec;
use swarm_api::v1::mount::Type;
use swarm_api::v1::{
    ConfigReference, ContainerSpec, HealthConfig, Mount, SecretReference, config_reference, secret_reference,
};

use crate::output::Table;
use crate::spec::command_line;
use crate::values::duration;

/// Image, command, arguments, environment and settings of a container.
pub(super) fn template(page: &mut Table, indent: &str, container: &ContainerSpec) {
    page.pair(&format!("{indent}Image"), &container.image);
    words(page, indent, &container.command, &container.args, &container.env);
    if !container.hostname.is_empty() {
        page.pair(&format!("{indent}Hostname"), &container.hostname);
    }
    let texts = [&container.dir, &container.user, &container.stop_signal];
    settings(page, indent, texts, &container.groups, container.stop_grace_period.as_ref());
    for limit in &container.ulimits {
        // Less than none is no limit.
        let number = |limit: i64| u64::try_from(limit).unwrap_or(u64::MAX);
        ulimit(page, indent, &limit.name, number(limit.soft), number(limit.hard));
    }
    let given = ContainerExtensions::read(&container.labels).unwrap_or_default();
    if !given.devices.is_empty() {
        let devices: Vec<String> = given.devices.iter().map(ToString::to_string).collect();
        page.pair(&format!("{indent}Devices"), format!("[{}]", devices.join(", ")));
    }
    if given.privileged {
        page.pair(&format!("{indent}Privileged"), "yes");
    }
    if let Some(kind) = given.gpus {
        page.pair(&format!("{indent}GPUs"), format!("generic resources of kind {kind}"));
    }
    health(page, indent, container.healthcheck.as_ref());
    let steps = Steps::read(&container.labels).unwrap_or_default();
    let init_tasks = steps.init_tasks.iter().map(|task| (task.image.as_str(), &task.command[..]));
    commands(page, indent, init_tasks, &steps.pre_stop);
}

/// What runs before a task starts, and before it is stopped.
fn commands<'a>(
    page: &mut Table,
    indent: &str,
    init_tasks: impl Iterator<Item = (&'a str, &'a [String])>,
    pre_stop: &[String],
) {
    for (number, (image, words)) in (1..).zip(init_tasks) {
        let of = if image.is_empty() { String::new() } else { format!(" (image {image})") };
        page.pair(&format!("{indent}Init Task {number}"), format!("{}{of}", command_line(words)));
    }
    if !pre_stop.is_empty() {
        page.pair(&format!("{indent}Pre-Stop"), command_line(pre_stop));
    }
}

/// How the health of a task is checked, as far as it is set.
fn health(page: &mut Table, indent: &str, check: Option<&HealthConfig>) {
    let Some(check) = check else { return };
    let command = match check.test.split_first() {
        None => "the image's".to_owned(),
        Some((kind, _)) if kind == "NONE" => "none".to_owned(),
        Some((kind, words)) if kind == "CMD-SHELL" => words.join(" "),
        Some((_, words)) => command_line(words),
    };
    page.pair(&format!("{indent}Health Check"), command);
    let times = [
        ("Interval", &check.interval),
        ("Timeout", &check.timeout),
        ("Start Period", &check.start_period),
        ("Start Interval", &check.start_interval),
    ];
    for (name, time) in times {
        if let Some(time) = time {
            page.pair(&format!("{indent} {name}"), duration::format(time));
        }
    }
    if check.retries != 0 {
        page.pair(&format!("{indent} Retries"), check.retries);
    }
}

/// What containers and processes have in common, as far as it is set.
fn settings(
    page: &mut Table,
    indent: &str,
    [dir, user, stop_signal]: [&String; 3],
    groups: &[String],
    stop_grace_period: Option<&prost_types::Duration>,
) {
    for (name, value) in [("Dir", dir), ("User", user), ("Stop Signal", stop_signal)] {
        if !value.is_empty() {
            page.pair(&format!("{indent}{name}"), value);
        }
    }
    if !groups.is_empty() {
        page.pair(&format!("{indent}Groups"), format!("[{}]", groups.join(", ")));
    }
    if let Some(period) = stop_grace_period {
        page.pair(&format!("{indent}Stop Grace Period"), duration::format(period));
    }
}

fn ulimit(page: &mut Table, indent: &str, name: &str, soft: u64, hard: u64) {
    let number = |limit: u64| if limit == u64::MAX { "unlimited".to_owned() } else { limit.to_string() };
    page.pair(&format!("{indent}Limit {name}"), format!("{}:{}", number(soft), number(hard)));
}

fn words(page: &mut Table, indent: &str, command: &[String], args: &[String], env: &[String]) {
    let command = command.join(" ");
    if !command.is_empty() {
        page.pair(&format!("{indent}Command"), format!("{command:?}"));
    }
    for (name, list) in [("Args", args), ("Env", env)] {
        let text = list.join(", ");
        if !text.is_empty() {
            page.pair(&format!("{indent}{name}"), format!("[{text}]"));
        }
    }
}

/// What a container is, in `task inspect`.
pub(super) fn spec_lines(page: &mut Table, indent: &str, container: &ContainerSpec) {
    template(page, indent, container);
    secrets_and_configs(page, indent, &container.secrets, &container.configs, |name, _, file| {
        format!("{name}:{file}")
    });
}

/// What a native process is.
pub(super) fn process_lines(page: &mut Table, indent: &str, process: &ProcessSpec) {
    words(page, indent, &process.command, &process.args, &process.env);
    let texts = [&process.dir, &process.user, &process.stop_signal];
    settings(page, indent, texts, &process.groups, process.stop_grace_period.as_ref());
    for limit in &process.rlimits {
        ulimit(page, indent, &limit.name, limit.soft, limit.hard);
    }
    if process.pids_limit != 0 {
        page.pair(&format!("{indent}Processes"), format!("at most {}", process.pids_limit));
    }
    let namespaces = [("mount", process.mount_namespace), ("pid", process.pid_namespace)];
    let own: Vec<&str> = namespaces.iter().filter(|(_, own)| *own).map(|(name, _)| *name).collect();
    if !own.is_empty() {
        page.pair(&format!("{indent}Isolated"), own.join(", "));
    }
    if !process.root.is_empty() {
        page.pair(&format!("{indent}Root"), &process.root);
    }
    health(page, indent, process.healthcheck.as_ref());
    commands(page, indent, process.init_tasks.iter().map(|task| ("", &task.words[..])), &process.pre_stop);
}

/// Mounts, secrets and configs.
pub(super) fn files(page: &mut Table, indent: &str, container: &ContainerSpec) {
    if !container.mounts.is_empty() {
        page.line(format!("{indent}Mounts:"));
        for mount in &container.mounts {
            mounted(page, indent, mount);
        }
    }
    secrets_and_configs(page, indent, &container.secrets, &container.configs, |name, id, file| {
        format!("{name}@{id}:{file}")
    });
}

fn mounted(page: &mut Table, indent: &str, mount: &Mount) {
    let kind = match mount.r#type() {
        Type::Bind => "bind",
        Type::Volume => "volume",
        Type::Tmpfs => "tmpfs",
        Type::Npipe => "npipe",
        Type::Cluster => "cluster",
    };
    page.line(format!("{indent}  - target = {}", mount.target));
    page.line(format!("{indent}    source = {}", mount.source));
    page.line(format!("{indent}    readonly = {}", mount.readonly));
    page.line(format!("{indent}    type = {kind}"));
}

fn secrets_and_configs(
    page: &mut Table,
    indent: &str,
    secrets: &[SecretReference],
    configs: &[ConfigReference],
    text: impl Fn(&str, &str, &str) -> String,
) {
    if !secrets.is_empty() {
        page.line(format!("{indent}Secrets:"));
        for secret in secrets {
            let (mode, file) = match &secret.target {
                Some(secret_reference::Target::File(file)) => ("FILE", file.name.as_str()),
                None => ("", ""),
            };
            page.line(format!("{indent}  [{mode}] {}", text(&secret.secret_name, &secret.secret_id, file)));
        }
    }
    if !configs.is_empty() {
        page.line(format!("{indent}Configs:"));
        for config in configs {
            let (mode, file) = match &config.target {
                Some(config_reference::Target::File(file)) => ("FILE", file.name.as_str()),
                _ => ("", ""),
            };
            page.line(format!("{indent}  [{mode}] {}", text(&config.config_name, &config.config_id, file)));
        }
    }
}
