//! Wraps fields of certain message types in `Shared<T>`.
//!
//! Objects of the store travel unchanged through log entries, answers and assignments, and the tasks of a
//! service have most of their content in common. With these fields behind a reference count, passing them on
//! is a pointer copy. prost has no option for the type of a field, so the generated text is edited.

/// Types that are never embedded by value.
const SHARED: &[&str] = &[
    "Annotations",
    "Cluster",
    "Config",
    "Endpoint",
    "Extension",
    "Network",
    "Node",
    "Resource",
    "Secret",
    "Service",
    "Task",
    "TaskSpec",
    "Volume",
];

/// Rewrites field types in generated code; everything else stays as it is.
pub(crate) fn wrap(code: &str) -> String {
    let mut out = String::with_capacity(code.len() + 4096);
    for line in code.lines() {
        let trimmed = line.trim_start();
        let field = trimmed.starts_with("pub ") && !trimmed.contains('(') && trimmed.ends_with(',');
        let variant = trimmed.ends_with("),") && trimmed.contains("(super::");
        if field {
            match trimmed.split_once(": ") {
                Some((name, ty)) => {
                    let indent = &line[..line.len() - trimmed.len()];
                    out.push_str(&format!("{indent}{name}: {}", wrap_type(ty)));
                }
                None => out.push_str(line),
            }
        } else if variant {
            out.push_str(&wrap_type(line));
        } else {
            out.push_str(line);
        }
        out.push('\n');
    }
    out
}

/// Replaces each path that ends in a shared type's name.
fn wrap_type(ty: &str) -> String {
    let mut out = String::new();
    let mut token = String::new();
    for c in ty.chars() {
        if c.is_alphanumeric() || c == '_' || c == ':' {
            token.push(c);
        } else {
            flush(&mut token, c, &mut out);
            out.push(c);
        }
    }
    flush(&mut token, ' ', &mut out);
    out
}

fn flush(token: &mut String, next: char, out: &mut String) {
    let name = token.rsplit("::").next().unwrap_or_default();
    let path = &token[..token.len() - name.len()];
    let local = path.split("::").all(|part| part.is_empty() || part == "super");
    // `Task(super::Task)`: the first is the variant's name, not a type.
    if SHARED.contains(&name) && local && next != '(' {
        out.push_str("crate::Shared<");
        out.push_str(token);
        out.push('>');
    } else {
        out.push_str(token);
    }
    token.clear();
}
