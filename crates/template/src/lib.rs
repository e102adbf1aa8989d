//! Templates in task specs: `{{.Service.Name}}` and the like, with conditions, loops and functions.
//!
//! The control API checks specs with it, both executors expand with it, and so do payloads of secrets and configs (with more functions, see
//! [`Functions`]). The language is Go's text/template, with all of its functions, but without `define`, `template`, `block`, `break` and
//! `continue`, which are refused by name, and without numbers that are complex. Which fields are expanded is the caller's matter, except for containers, where
//! [`expand_container_spec`] knows them.

mod eval;
mod functions;
mod parse;
mod printf;
#[cfg(test)]
mod table;

use std::collections::BTreeMap;

use swarm_api::v1::{ContainerSpec, GenericResource, NodeDescription, Task, generic_resource};

pub use eval::Value;

/// Why a template can't be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TemplateError(pub String);

type Result<T> = std::result::Result<T, TemplateError>;

/// Functions beside the built-in ones.
pub trait Functions: Send + Sync {
    /// Calls a function; `None` if there is no such function here.
    fn call(&self, name: &str, args: &[Value]) -> Option<Result<Value>>;
}

/// No functions of one's own.
impl Functions for () {
    fn call(&self, _: &str, _: &[Value]) -> Option<Result<Value>> {
        None
    }
}

/// What a task's templates may refer to: `.Service`, `.Node` and `.Task`.
#[derive(Debug, Clone)]
pub struct Context(Value);

impl Context {
    /// The context of a task on its node. What is not known of the node is empty.
    pub fn new(task: &Task, node: Option<&NodeDescription>) -> Self {
        let str = |text: &str| Value::Str(text.to_owned());
        let labels = |labels: &BTreeMap<String, String>| {
            Value::Map(labels.iter().map(|(key, value)| (key.clone(), Value::Str(value.clone()))).collect())
        };
        let platform = node.and_then(|node| node.platform.as_ref());
        let slot = if task.slot == 0 { task.node_id.clone() } else { task.slot.to_string().into() };
        let service = Value::Struct(BTreeMap::from([
            ("ID", str(&task.service_id)),
            ("Name", str(&task.service_annotations.name)),
            ("Labels", labels(&task.service_annotations.labels)),
        ]));
        let platform = Value::Struct(BTreeMap::from([
            ("Architecture", str(platform.map_or("", |p| &p.architecture))),
            ("OS", str(platform.map_or("", |p| &p.os))),
        ]));
        let node = Value::Struct(BTreeMap::from([
            ("ID", str(&task.node_id)),
            ("Hostname", str(node.map_or("", |n| &n.hostname))),
            ("Platform", platform),
        ]));
        let task = Value::Struct(BTreeMap::from([
            ("ID", str(&task.id)),
            ("Name", Value::Str(swarm_api::naming::task_name(task))),
            ("Slot", Value::Str(slot.to_string())),
        ]));
        Context(Value::Struct(BTreeMap::from([("Service", service), ("Node", node), ("Task", task)])))
    }

    /// Expands one text.
    ///
    /// # Errors
    /// A text that does not parse, an unknown field, key or function.
    pub fn expand(&self, text: &str) -> Result<String> {
        self.expand_with(text, &())
    }

    /// Expands one text with functions beside the built-in ones.
    ///
    /// # Errors
    /// As [`Context::expand`], and what those functions say.
    pub fn expand_with(&self, text: &str, extra: &dyn Functions) -> Result<String> {
        if !text.contains("{{") {
            return Ok(text.to_owned());
        }
        eval::Evaluator::new(self.0.clone(), extra).run(&parse::parse(text)?)
    }

    /// Expands the values of `KEY=VALUE` entries; keys and entries without `=` stay as they are.
    ///
    /// # Errors
    /// As [`Context::expand`], naming the entry.
    pub fn expand_env(&self, env: &[String]) -> Result<Vec<String>> {
        let expanded = env.iter().map(|entry| match entry.split_once('=') {
            None => Ok(entry.clone()),
            Some((key, value)) => match self.expand(value) {
                Ok(value) => Ok(format!("{key}={value}")),
                Err(error) => Err(TemplateError(format!("expanding env {entry:?}: {error}"))),
            },
        });
        expanded
            .collect::<Result<_>>()
            .map_err(|error| TemplateError(format!("expanding env failed: {error}")))
    }
}

/// A copy of a container spec with the fields expanded that may hold templates: env values, host name, sources
/// and targets of mounts, labels and driver options of volumes.
///
/// # Errors
/// As [`Context::expand`], naming the field.
pub fn expand_container_spec(spec: &ContainerSpec, context: &Context) -> Result<ContainerSpec> {
    let mut spec = spec.clone();
    spec.env = context.expand_env(&spec.env)?;
    spec.hostname = context
        .expand(&spec.hostname)
        .map_err(|error| TemplateError(format!("expanding hostname failed: {error}")))?;
    let in_mounts = |what: &str, text: &str| {
        context.expand(text).map_err(|error| {
            TemplateError(format!("expanding mounts failed: expanding mount {what} {text:?}: {error}"))
        })
    };
    for mount in &mut spec.mounts {
        mount.source = in_mounts("source", &mount.source)?;
        mount.target = in_mounts("target", &mount.target)?;
        let Some(options) = &mut mount.volume_options else { continue };
        for (key, value) in &mut options.labels {
            *value = in_mounts(&format!("label {key}"), value)?;
        }
        for (key, value) in options.driver_config.iter_mut().flat_map(|driver| &mut driver.options) {
            *value = in_mounts(&format!("driver option {key}"), value)?;
        }
    }
    Ok(spec)
}

/// The generic resources that a task was given, as its environment: `DOCKER_RESOURCE_<KIND>=v1,v2`, by kind.
pub fn resource_env(resources: &[GenericResource]) -> Vec<String> {
    let mut kinds: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for resource in resources.iter().filter_map(|resource| resource.resource.as_ref()) {
        let (kind, value) = match resource {
            generic_resource::Resource::NamedResourceSpec(named) => (&named.kind, named.value.clone()),
            generic_resource::Resource::DiscreteResourceSpec(discrete) => {
                (&discrete.kind, discrete.value.to_string())
            }
        };
        kinds.entry(format!("DOCKER_RESOURCE_{kind}").to_uppercase()).or_default().push(value);
    }
    kinds.into_iter().map(|(name, values)| format!("{name}={}", values.join(","))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use swarm_api::v1::mount::VolumeOptions;
    use swarm_api::v1::{
        Annotations, DiscreteGenericResource, Driver, Mount, NamedGenericResource, Platform,
    };

    fn context() -> Context {
        let task = Task {
            id: "t1".into(),
            service_id: "s1".into(),
            slot: 3,
            node_id: "n1".into(),
            service_annotations: Annotations {
                name: "web".into(),
                labels: BTreeMap::from([("a".into(), "1".into()), ("b.c".into(), "2".into())]),
                ..Default::default()
            }
            .into(),
            ..Default::default()
        };
        let node = NodeDescription {
            hostname: "host".into(),
            platform: Some(Platform { architecture: "x86_64".into(), os: "linux".into() }),
            ..Default::default()
        };
        Context::new(&task, Some(&node))
    }

    #[track_caller]
    fn check(template: &str, expected: &str) {
        assert_eq!(context().expand(template).as_deref(), Ok(expected), "{template}");
    }

    #[track_caller]
    fn check_error(template: &str, part: &str) {
        let error = context().expand(template).expect_err(template).to_string();
        assert!(error.contains(part), "{template}: {error}");
    }

    #[test]
    fn fields_are_put_in() {
        check("plain", "plain");
        check("{{.Service.ID}}/{{ .Service.Name }}", "s1/web");
        check("{{.Node.ID}}-{{.Node.Hostname}}-{{.Node.Platform.OS}}", "n1-host-linux");
        check("{{.Task.Name}}.{{.Task.Slot}}", "web.3.t1.3");
        check("{{.Service.Labels.a}}", "1");
        check("{{.Service.Labels}}", "map[a:1 b.c:2]");
        check("{{$.Task.ID}}", "t1");
    }

    #[test]
    fn node_stands_for_the_slot_of_a_global_task() {
        let task = Task { node_id: "n1".into(), ..Default::default() };
        assert_eq!(Context::new(&task, None).expand("{{.Task.Slot}}{{.Node.Hostname}}"), Ok("n1".into()));
    }

    #[test]
    fn functions_and_pipelines() {
        check("{{index .Service.Labels \"b.c\"}}", "2");
        check("{{index .Service.Labels \"none\"}}", "");
        check("{{join \"-\" .Task.ID .Service.Name}}", "t1-web");
        check("{{.Service.Name | printf \"%s-%5s\" \"x\" | len}}", "7");
        check("{{printf \"%-4s|%4s|%03d|%q\" \"a\" \"b\" 7 \"c\"}}", "a   |   b|007|\"c\"");
        check("{{print 1 \"a\" true}}", "1atrue");
        check("{{eq .Task.Slot \"1\" \"3\"}} {{and 0 1}} {{or \"\" \"x\"}} {{not 0}}", "true 0 x true");
        check("{{lt 1 2}}{{ge \"a\" \"b\"}}", "truefalse");
        check("{{slice .Service.Name 1 2}}", "e");
        check("{{html \"<a>\"}} {{urlquery \"a b/c\"}}", "&lt;a&gt; a+b%2Fc");
        check("{{(index .Service.Labels \"a\") | print}}", "1");
        check("{{`}}`}}{{\"}}\"}}", "}}}}");
    }

    #[test]
    fn conditions_loops_and_variables() {
        check("{{if .Service.Labels}}yes{{else}}no{{end}}", "yes");
        check(
            "{{if eq .Task.Slot \"1\"}}one{{else if eq .Task.Slot \"3\"}}three{{else}}more{{end}}",
            "three",
        );
        check("{{range $k, $v := .Service.Labels}}{{$k}}={{$v}};{{end}}", "a=1;b.c=2;");
        check("{{range .Service.Labels}}{{.}}{{end}}", "12");
        check("{{with .Service.Name}}{{.}}!{{end}}", "web!");
        check("{{$x := 1}}{{if true}}{{$x = 2}}{{end}}{{$x}}", "2");
        check("a {{- /* gone */ -}} b {{- 1 -}} c", "ab1c");
    }

    #[test]
    fn mistakes_are_named() {
        check_error("{{.Service.Labels.none}}", "map has no entry for key \"none\"");
        check_error("{{.Nope}}", "no field Nope");
        check_error("{{.Task.Annotations}}", "no field Annotations");
        check_error("{{nope 1}}", "function \"nope\" not defined");
        check_error("{{.Task.ID", "unclosed action");
        check_error("{{if true}}", "no {{end}}");
        check_error("{{end}}", "unexpected {{end}}");
        check_error("{{$x}}", "undefined variable $x");
        check_error("{{}}", "missing value");
        check_error("{{len 1}}", "no length");
        check_error(&format!("{{{{{}1", "(".repeat(100_000)), "unclosed action");
        check_error(&format!("{{{{{}1}}}}", "(".repeat(100_000)), "nested too deeply");
        check_error(&"{{if 1}}".repeat(100_000), "nested too deeply");
    }

    #[test]
    fn only_the_named_fields_of_a_container_are_expanded() {
        let t = "{{.Task.ID}}".to_owned();
        let spec = ContainerSpec {
            image: t.clone(),
            args: vec![t.clone()],
            env: vec![format!("{t}={t}"), t.clone()],
            hostname: format!("{t}-{{{{.Node.Hostname}}}}"),
            labels: BTreeMap::from([(t.clone(), t.clone())]),
            mounts: vec![Mount { source: t.clone(), target: format!("/{t}"), ..Default::default() }],
            ..Default::default()
        };
        let out = expand_container_spec(&spec, &context()).unwrap();
        assert_eq!(out.labels, BTreeMap::from([(t.clone(), t.clone())]));
        assert_eq!((out.image, out.args, out.env), (t.clone(), vec![t.clone()], vec![format!("{t}=t1"), t]));
        assert_eq!((out.hostname.as_str(), out.mounts[0].source.as_str()), ("t1-host", "t1"));
        assert_eq!(out.mounts[0].target, "/t1");
        let bad = ContainerSpec { env: vec!["A={{.X}}".into()], ..Default::default() };
        let error = expand_container_spec(&bad, &context()).unwrap_err().to_string();
        assert!(error.starts_with("expanding env failed: expanding env \"A={{.X}}\": "), "{error}");
    }

    #[test]
    fn values_of_volume_options_are_expanded_and_their_names_are_not() {
        let t = "{{.Task.ID}}".to_owned();
        let pairs = BTreeMap::from([(t.clone(), t.clone())]);
        let driver = Driver { name: t.clone(), options: pairs.clone() };
        let options = VolumeOptions { labels: pairs, driver_config: Some(driver), ..Default::default() };
        let mount = Mount { volume_options: Some(options), ..Default::default() };
        let spec = ContainerSpec { mounts: vec![mount], ..Default::default() };
        let out = expand_container_spec(&spec, &context()).unwrap();
        let options = out.mounts[0].volume_options.clone().unwrap();
        let expanded = BTreeMap::from([(t.clone(), "t1".to_owned())]);
        assert_eq!(options.labels, expanded);
        assert_eq!(options.driver_config, Some(Driver { name: t, options: expanded }));
    }

    #[test]
    fn labels_of_a_task_are_not_shown() {
        let mut task = Task { id: "t1".into(), ..Default::default() };
        task.annotations.labels.insert("hidden".into(), "x".into());
        let context = Context::new(&task, None);
        assert!(!context.expand("{{.Task}}{{.Service}}{{.Node}}").unwrap().contains("hidden"));
        for field in ["Labels", "Annotations", "Annotations.Labels", "Labels.hidden"] {
            assert!(context.expand(&format!("{{{{.Task.{field}}}}}")).is_err(), "{field}");
        }
    }

    /// Payloads of secrets and configs have functions of their own.
    #[test]
    fn functions_of_the_caller_stand_beside_the_built_in_ones() {
        struct Secrets;
        impl Functions for Secrets {
            fn call(&self, name: &str, args: &[Value]) -> Option<Result<Value>> {
                let found = match args {
                    [Value::Str(target)] if target == "known" => Ok(Value::Str("{{.Task.ID}}".to_owned())),
                    _ => Err(TemplateError("no such target".to_owned())),
                };
                (name == "secret").then_some(found)
            }
        }
        let expand = |text: &str| context().expand_with(text, &Secrets);
        // What they give is not expanded again.
        assert_eq!(expand("{{secret \"known\"}} {{len \"ab\"}}").as_deref(), Ok("{{.Task.ID}} 2"));
        assert_eq!(expand("{{secret \"other\"}}"), Err(TemplateError("no such target".to_owned())));
        assert!(expand("{{config \"known\"}}").unwrap_err().to_string().contains("not defined"));
        assert!(context().expand("{{secret \"known\"}}").is_err());
    }

    #[test]
    fn generic_resources_are_in_the_environment_by_kind() {
        let named = |kind: &str, value: &str| GenericResource {
            resource: Some(generic_resource::Resource::NamedResourceSpec(NamedGenericResource {
                kind: kind.into(),
                value: value.into(),
            })),
        };
        let disk = DiscreteGenericResource { kind: "disk".into(), value: 12 };
        let discrete =
            GenericResource { resource: Some(generic_resource::Resource::DiscreteResourceSpec(disk)) };
        assert_eq!(
            resource_env(&[named("gpu", "b"), named("fpga", "x"), discrete, named("gpu", "a")]),
            ["DOCKER_RESOURCE_DISK=12", "DOCKER_RESOURCE_FPGA=x", "DOCKER_RESOURCE_GPU=b,a"]
        );
    }
}
