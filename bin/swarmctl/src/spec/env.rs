//! The environment of tasks, from `--env` and from files.

use std::path::Path;

use super::ServiceFlags;
use crate::error::{Error, Result};
use crate::values::csv::join;

/// What was given; `None` if nothing was. Of several entries for a name the last one counts, in the first one's place.
pub(super) fn given(flags: &ServiceFlags) -> Result<Option<Vec<String>>> {
    let direct = join(flags.env.as_ref());
    let Some(files) = &flags.env_file else { return Ok(direct) };
    let mut all: Vec<String> = Vec::new();
    let read = files.iter().map(|path| file(path)).collect::<Result<Vec<_>>>()?;
    for entry in read.into_iter().flatten().chain(direct.unwrap_or_default()) {
        let name = |entry: &str| entry.split_once('=').map_or(entry, |(name, _)| name).to_owned();
        match all.iter_mut().find(|present| name(present) == name(&entry)) {
            Some(present) => *present = entry,
            None => all.push(entry),
        }
    }
    Ok(Some(all))
}

fn file(path: &Path) -> Result<Vec<String>> {
    let failed = |reason: String| Error::plain(format!("--env-file {}: {reason}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    entries(&text, |name| std::env::var(name).ok()).map_err(failed)
}

/// The entries of a file. A name alone stands for the variable of this environment; if that is not there, for nothing.
fn entries(text: &str, here: impl Fn(&str) -> Option<String>) -> Result<Vec<String>, String> {
    let mut entries = Vec::new();
    for (number, line) in (1..).zip(text.trim_start_matches('\u{feff}').lines()) {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = match line.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (line.trim_end(), here(line.trim_end())),
        };
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(format!("line {number}: {name:?} is no name of a variable"));
        }
        entries.extend(value.map(|value| format!("{name}={value}")));
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_a_variable_a_line() {
        let here = |name: &str| (name == "HOME").then(|| "/root".to_owned());
        let text = "\u{feff}# comment\nA=1\n\n  B= two = 2 \nHOME\nABSENT\nC=\n";
        assert_eq!(entries(text, here).unwrap(), ["A=1", "B= two = 2 ", "HOME=/root", "C="]);
        for (bad, name) in [("a b=1", "\"a b\""), ("=1", "\"\"")] {
            let error = entries(&format!("A=1\n{bad}\n"), here).unwrap_err();
            assert_eq!(error, format!("line 2: {name} is no name of a variable"));
        }
    }
}
