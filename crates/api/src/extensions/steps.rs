//! What is run before a task's container starts, and before it is stopped.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Container label: commands that must succeed before the container starts, as JSON:
/// `[{"command":["./migrate"]},{"image":"busybox","command":["touch","/data/ready"]}]`.
pub const INIT_TASKS: &str = "swarmd.init-tasks";

/// Container label: the command that is run inside the container before it is asked to stop, as JSON: `["nginx","-s","quit"]`.
pub const PRE_STOP: &str = "swarmd.pre-stop";

/// Most init tasks of a task.
pub const MOST_INIT_TASKS: usize = 32;

/// A command that must end with exit code 0 before the task starts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitTask {
    /// Image of its container; the task's own if empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub image: String,
    /// Program and arguments.
    pub command: Vec<String>,
}

/// What the labels of a container say of commands beside its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Steps {
    /// Run one after the other before the container starts.
    pub init_tasks: Vec<InitTask>,
    /// Run before the stop signal; none if empty.
    pub pre_stop: Vec<String>,
}

impl Steps {
    /// Reads the labels of a container's spec.
    ///
    /// # Errors
    /// What is wrong with a value.
    pub fn read(labels: &BTreeMap<String, String>) -> Result<Steps, String> {
        let mut steps = Steps::default();
        if let Some(value) = labels.get(INIT_TASKS) {
            steps.init_tasks = serde_json::from_str(value).map_err(|error| bad(INIT_TASKS, &error))?;
            check_count(steps.init_tasks.len())?;
            steps.init_tasks.iter().try_for_each(|task| check_words("init task", &task.command))?;
        }
        if let Some(value) = labels.get(PRE_STOP) {
            steps.pre_stop = serde_json::from_str(value).map_err(|error| bad(PRE_STOP, &error))?;
            check_words("pre-stop command", &steps.pre_stop)?;
        }
        Ok(steps)
    }

    /// Writes it into the labels of a container's spec, in place of what they said.
    pub fn write(&self, labels: &mut BTreeMap<String, String>) {
        labels.remove(INIT_TASKS);
        labels.remove(PRE_STOP);
        let texts = [
            (INIT_TASKS, (!self.init_tasks.is_empty()).then(|| serde_json::to_string(&self.init_tasks))),
            (PRE_STOP, (!self.pre_stop.is_empty()).then(|| serde_json::to_string(&self.pre_stop))),
        ];
        for (label, text) in texts {
            // Lists of texts can always be written.
            if let Some(Ok(text)) = text {
                labels.insert(label.to_owned(), text);
            }
        }
    }
}

fn bad(label: &str, error: &serde_json::Error) -> String {
    format!("label {label:?} can't be read: {error}")
}

/// A task may have so many init tasks.
///
/// # Errors
/// Says how many may be.
pub fn check_count(init_tasks: usize) -> Result<(), String> {
    if init_tasks > MOST_INIT_TASKS {
        return Err(format!("there are {init_tasks} init tasks; {MOST_INIT_TASKS} may be"));
    }
    Ok(())
}

/// A command names a program, and holds nothing that a kernel does not take.
///
/// # Errors
/// What is wrong; `what` names the command.
pub fn check_words(what: &str, words: &[String]) -> Result<(), String> {
    if words.first().is_none_or(String::is_empty) {
        return Err(format!("the {what} names no program"));
    }
    if words.iter().any(|word| word.contains('\0')) {
        return Err(format!("the {what} holds a NUL character"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
    }

    #[test]
    fn commands_beside_the_container_are_in_its_labels() {
        let own = InitTask { command: vec!["./migrate".into(), "a b".into()], ..Default::default() };
        let other = InitTask { image: "busybox".into(), command: vec!["true".into()] };
        let steps = Steps { init_tasks: vec![own, other], pre_stop: vec!["quit".into()] };
        let mut written = labels(&[("mine", "x"), (PRE_STOP, "[\"old\"]")]);
        steps.write(&mut written);
        let json = r#"[{"command":["./migrate","a b"]},{"image":"busybox","command":["true"]}]"#;
        assert_eq!(written, labels(&[("mine", "x"), (INIT_TASKS, json), (PRE_STOP, "[\"quit\"]")]));
        assert_eq!(Steps::read(&written), Ok(steps));
        Steps::default().write(&mut written);
        assert_eq!(written, labels(&[("mine", "x")]));
    }

    #[test]
    fn what_can_not_be_run_is_refused() {
        let many = format!("[{}]", vec!["{\"command\":[\"a\"]}"; 33].join(","));
        for (label, value, text) in [
            (INIT_TASKS, "x", "can't be read"),
            (INIT_TASKS, "[{\"command\":[]}]", "names no program"),
            (INIT_TASKS, "[{\"command\":[\"a\"],\"imgae\":\"b\"}]", "unknown field"),
            (INIT_TASKS, &many, "there are 33 init tasks; 32 may be"),
            (PRE_STOP, "[\"\"]", "the pre-stop command names no program"),
            (PRE_STOP, "[\"a\\u0000\"]", "NUL"),
            (PRE_STOP, "{}", "can't be read"),
        ] {
            let error = Steps::read(&labels(&[(label, value)])).unwrap_err();
            assert!(error.contains(text), "{label}={value}: {error}");
        }
    }
}
