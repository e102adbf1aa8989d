//! Containers of a swarm's tasks, as an engine lists them.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};

/// Words after `docker` that list the containers with a label: those that run, or all. [`by_task`] reads the answer.
pub fn list(label: &str, all: bool) -> Vec<String> {
    let format = "{{.Label \"com.docker.swarm.task.id\"}} {{.ID}} {{.Label \"com.docker.swarm.node.id\"}}";
    let filter = format!("label={label}");
    let words = ["ps", "--no-trunc", "--filter", &filter, "--format", format];
    words.into_iter().chain(all.then_some("--all")).map(str::to_owned).collect()
}

/// The listed containers of a node, by their tasks.
///
/// # Errors
/// If a task has two, or the text is not what [`list`] asks for.
pub fn by_task(text: &str, node: &str) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let [task, container, of] = line.split(' ').collect::<Vec<_>>()[..] else { bail!("{line:?}") };
        if of == node {
            let other = found.insert(task.to_owned(), container.to_owned());
            ensure!(other.is_none(), "a task has two containers: {text}");
        }
    }
    Ok(found)
}
