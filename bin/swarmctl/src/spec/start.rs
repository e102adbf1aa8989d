//! Flags that say what happens before tasks start and before they stop.

use clap::Args;
use swarm_api::extensions::{self, Condition, Dependency, InitTask, StartOrder, Steps};
use swarm_api::swarmd::ProcessSpec;
use swarm_api::swarmd::process_spec::Command;
use swarm_api::v1::{ContainerSpec, ServiceSpec};

use super::{Found, ServiceFlags};
use crate::error::{Error, Result};
use crate::values::List;
use crate::values::csv::join;

/// The flags.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Start and stop")]
pub(crate) struct StartFlags {
    /// Services that must be up before tasks of this one start, SERVICE[:healthy|running|completed], jobs by having
    /// completed; replaces all [default condition: healthy, of jobs completed]
    #[arg(long, value_name = "LIST")]
    pub(crate) depends_on: Option<Vec<List>>,
    /// Command that must succeed before the task starts, with quotes as in a shell, such as
    /// '[image=IMAGE] ./migrate --all'; one flag for each, in their order; replaces all
    #[arg(long, value_name = "COMMAND", allow_hyphen_values = true)]
    pub(crate) init_task: Option<Vec<String>>,
    /// Command that is run in the container, or beside the process, before the stop signal, within the stop grace period
    #[arg(long, value_name = "COMMAND", allow_hyphen_values = true)]
    pub(crate) pre_stop: Option<String>,
}

/// A service that is to be waited for, as it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Id, name, or the beginning of an id.
    pub(crate) service: String,
    /// The usual one for its mode if absent.
    pub(crate) condition: Option<Condition>,
}

impl StartFlags {
    /// The services to be looked up.
    pub(crate) fn wanted(&self) -> Result<Vec<Wanted>> {
        let terms = join(self.depends_on.as_ref()).unwrap_or_default();
        let one = |term: &String| {
            let (service, condition) = match term.split_once(':') {
                None => (term.as_str(), None),
                Some((service, name)) => {
                    let condition = Condition::parse(name).ok_or_else(|| {
                        let text = format!(
                            "--depends-on {term:?}: expected SERVICE, SERVICE:healthy, SERVICE:running or \
                             SERVICE:completed"
                        );
                        Error::Usage(text)
                    })?;
                    (service, Some(condition))
                }
            };
            if service.is_empty() {
                return Err(Error::usage(format!("--depends-on {term:?}: a service must be named")));
            }
            Ok(Wanted { service: service.to_owned(), condition })
        };
        terms.iter().map(one).collect()
    }

    fn init_tasks(&self) -> Result<Option<Vec<InitTask>>> {
        let Some(texts) = &self.init_task else { return Ok(None) };
        let tasks = texts.iter().filter(|text| !text.trim().is_empty()).map(|text| {
            let mut words = words("--init-task", text)?;
            let image = words.first().and_then(|word| word.strip_prefix("image=")).map(str::to_owned);
            if image.is_some() {
                words.remove(0);
            }
            extensions::check_words("init task", &words)
                .map_err(|error| Error::usage(format!("--init-task {text:?}: {error}")))?;
            Ok(InitTask { image: image.unwrap_or_default(), command: words })
        });
        let tasks: Vec<InitTask> = tasks.collect::<Result<_>>()?;
        extensions::check_count(tasks.len()).map_err(Error::Usage)?;
        Ok(Some(tasks))
    }

    fn pre_stop(&self) -> Result<Option<Vec<String>>> {
        self.pre_stop.as_ref().map(|text| words("--pre-stop", text)).transpose()
    }
}

/// The words of a command line.
pub(super) fn words(flag: &str, text: &str) -> Result<Vec<String>> {
    shlex::split(text).ok_or_else(|| Error::usage(format!("{flag} {text:?}: a quotation mark is left open")))
}

/// Words as a command line that reads as they do.
pub(crate) fn command_line(words: &[String]) -> String {
    shlex::try_join(words.iter().map(String::as_str)).unwrap_or_else(|_| words.join(" "))
}

/// Whom the service waits for: what was given, as it was found.
pub(super) fn apply_order(spec: &mut ServiceSpec, flags: &ServiceFlags, found: &Found) {
    if flags.start.depends_on.is_some() {
        StartOrder(found.dependencies.clone()).write(&mut spec.annotations.labels);
    }
}

/// What is waited for of a service of this spec.
pub(crate) fn dependency(spec: &ServiceSpec, condition: Option<Condition>) -> Dependency {
    use swarm_api::v1::service_spec::Mode;
    let is_job = matches!(spec.mode, Some(Mode::ReplicatedJob(_) | Mode::GlobalJob(_)));
    let usual = if is_job { Condition::Completed } else { Condition::Healthy };
    Dependency { service: spec.annotations.name.clone(), condition: condition.unwrap_or(usual) }
}

/// Commands beside that of a container.
pub(super) fn apply_to_container(container: &mut ContainerSpec, flags: &StartFlags) -> Result<()> {
    let (init_tasks, pre_stop) = (flags.init_tasks()?, flags.pre_stop()?);
    if init_tasks.is_none() && pre_stop.is_none() {
        return Ok(());
    }
    let mut steps = Steps::read(&container.labels).map_err(Error::Plain)?;
    steps.init_tasks = init_tasks.unwrap_or(steps.init_tasks);
    steps.pre_stop = pre_stop.unwrap_or(steps.pre_stop);
    steps.write(&mut container.labels);
    Ok(())
}

/// Commands beside that of a process.
pub(super) fn apply_to_process(process: &mut ProcessSpec, flags: &StartFlags) -> Result<()> {
    if let Some(tasks) = flags.init_tasks()? {
        if tasks.iter().any(|task| !task.image.is_empty()) {
            return Err(Error::usage(
                "--init-task: images are for containers, and this service runs native processes",
            ));
        }
        process.init_tasks = tasks.into_iter().map(|task| Command { words: task.command }).collect();
    }
    if let Some(words) = flags.pre_stop()? {
        process.pre_stop = words;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(init_task: &[&str], pre_stop: Option<&str>) -> StartFlags {
        StartFlags {
            init_task: Some(init_task.iter().map(|text| text.to_string()).collect()),
            pre_stop: pre_stop.map(str::to_owned),
            ..Default::default()
        }
    }

    #[test]
    fn commands_are_written_as_in_a_shell_and_an_image_before_them() {
        let mut container = ContainerSpec::default();
        container.labels.insert("mine".into(), "x".into());
        let given = flags(&["./migrate --all", "image=busybox sh -c 'echo \"a b\"'"], Some("nginx -s quit"));
        apply_to_container(&mut container, &given).unwrap();
        let steps = Steps::read(&container.labels).unwrap();
        assert_eq!(
            steps.init_tasks[0],
            InitTask { image: String::new(), command: vec!["./migrate".into(), "--all".into()] }
        );
        assert_eq!(
            steps.init_tasks[1],
            InitTask {
                image: "busybox".into(),
                command: vec!["sh".into(), "-c".into(), "echo \"a b\"".into()]
            }
        );
        assert_eq!(command_line(&steps.init_tasks[1].command), "sh -c 'echo \"a b\"'");
        assert_eq!(steps.pre_stop, ["nginx", "-s", "quit"]);
        // One is changed, the other stays; nothing clears.
        apply_to_container(&mut container, &flags(&[""], None)).unwrap();
        let steps = Steps::read(&container.labels).unwrap();
        assert_eq!((steps.init_tasks.len(), steps.pre_stop.len()), (0, 3));
        apply_to_container(
            &mut container,
            &StartFlags { pre_stop: Some(String::new()), ..Default::default() },
        )
        .unwrap();
        assert_eq!(container.labels.keys().collect::<Vec<_>>(), ["mine"]);
    }

    #[test]
    fn processes_have_commands_without_images() {
        let mut process = ProcessSpec::default();
        apply_to_process(&mut process, &flags(&["true", "a 'b c'"], Some("x"))).unwrap();
        assert_eq!(process.init_tasks[1].words, ["a", "b c"]);
        assert_eq!(process.pre_stop, ["x"]);
        let error = apply_to_process(&mut process, &flags(&["image=busybox true"], None)).unwrap_err();
        assert!(error.to_string().contains("images are for containers"), "{error}");
    }

    #[test]
    fn what_is_not_written_as_it_should_be_is_refused() {
        for (text, expected) in [("image=busybox", "names no program"), ("sh -c 'x", "left open")] {
            let error = flags(&[text], None).init_tasks().unwrap_err().to_string();
            assert!(error.starts_with("--init-task") && error.contains(expected), "{error}");
        }
        let wanted = |text: &str| {
            StartFlags { depends_on: Some(vec![text.parse().unwrap()]), ..Default::default() }.wanted()
        };
        let db = |condition| Wanted { service: "db".into(), condition };
        assert_eq!(wanted("db,db:running").unwrap(), [db(None), db(Some(Condition::Running))]);
        assert_eq!(wanted("").unwrap(), []);
        assert!(wanted("db:up").unwrap_err().to_string().contains("expected SERVICE, SERVICE:healthy"));
        assert!(wanted(":healthy").unwrap_err().to_string().contains("must be named"));
    }
}
