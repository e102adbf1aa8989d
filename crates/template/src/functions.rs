//! The functions that every template has.

use super::eval::Value;
use super::{Result, TemplateError};

fn wrong(name: &str, what: &str) -> TemplateError {
    TemplateError(format!("{name}: {what}"))
}

/// Calls a built-in function.
pub(super) fn call(name: &str, args: &[Value]) -> Result<Value> {
    let text = || args.iter().map(Value::to_string).collect::<String>();
    Ok(match (name, args) {
        ("not", [value]) => Value::Bool(!value.truth()),
        ("len", [value]) => Value::Int(length(value)? as i64),
        ("index", [value, keys @ ..]) => {
            keys.iter().try_fold(value.clone(), |value, key| index(&value, key))?
        }
        ("slice", [value, bounds @ ..]) if bounds.len() <= 2 => slice(value, bounds)?,
        ("eq", [first, others @ ..]) if !others.is_empty() => Value::Bool(others.contains(first)),
        ("ne", [a, b]) => Value::Bool(a != b),
        ("lt", [a, b]) => Value::Bool(order(name, a, b)?.is_lt()),
        ("le", [a, b]) => Value::Bool(order(name, a, b)?.is_le()),
        ("gt", [a, b]) => Value::Bool(order(name, a, b)?.is_gt()),
        ("ge", [a, b]) => Value::Bool(order(name, a, b)?.is_ge()),
        ("print", _) => Value::Str(text()),
        ("println", _) => Value::Str(args.iter().map(Value::to_string).collect::<Vec<_>>().join(" ") + "\n"),
        ("printf", [Value::Str(format), values @ ..]) => Value::Str(printf(format, values)),
        ("join", [Value::Str(separator), values @ ..]) => {
            Value::Str(values.iter().map(Value::to_string).collect::<Vec<_>>().join(separator))
        }
        ("html", _) => Value::Str(escape(&text(), |c| match c {
            '<' => Some("&lt;".to_owned()),
            '>' => Some("&gt;".to_owned()),
            '&' => Some("&amp;".to_owned()),
            '"' => Some("&#34;".to_owned()),
            '\'' => Some("&#39;".to_owned()),
            _ => None,
        })),
        ("js", _) => Value::Str(escape(&text(), |c| match c {
            '\\' | '\'' | '"' => Some(format!("\\{c}")),
            '<' | '>' | '&' | '=' => Some(format!("\\u{:04X}", u32::from(c))),
            c if c.is_control() => Some(format!("\\u{:04X}", u32::from(c))),
            _ => None,
        })),
        ("urlquery", _) => Value::Str(url_query(&text())),
        (
            "not" | "len" | "index" | "slice" | "eq" | "ne" | "lt" | "le" | "gt" | "ge" | "printf" | "join",
            _,
        ) => return Err(wrong(name, "wrong number or kind of arguments")),
        _ => return Err(TemplateError(format!("function {name:?} not defined"))),
    })
}

fn length(value: &Value) -> Result<usize> {
    match value {
        Value::Str(text) => Ok(text.len()),
        Value::Map(map) => Ok(map.len()),
        Value::List(list) => Ok(list.len()),
        other => Err(wrong("len", &format!("{other} has no length"))),
    }
}

fn index(value: &Value, key: &Value) -> Result<Value> {
    match (value, key) {
        // An absent key gives the zero value, as the language has it for `index`.
        (Value::Map(map), Value::Str(key)) => Ok(map.get(key).cloned().unwrap_or(Value::Str(String::new()))),
        (Value::List(list), Value::Int(at)) => {
            let found = usize::try_from(*at).ok().and_then(|at| list.get(at));
            found.cloned().ok_or_else(|| wrong("index", &format!("{at} is out of range")))
        }
        (Value::Str(text), Value::Int(at)) => {
            let found = usize::try_from(*at).ok().and_then(|at| text.as_bytes().get(at));
            found
                .map(|b| Value::Int(i64::from(*b)))
                .ok_or_else(|| wrong("index", &format!("{at} is out of range")))
        }
        _ => Err(wrong("index", &format!("can't index {value} with {key}"))),
    }
}

fn slice(value: &Value, bounds: &[Value]) -> Result<Value> {
    let bound = |at: usize, default: usize| match bounds.get(at) {
        None => Ok(default),
        Some(Value::Int(n)) => usize::try_from(*n).map_err(|_| wrong("slice", "index out of range")),
        Some(other) => Err(wrong("slice", &format!("{other} is no number"))),
    };
    let (from, to) = (bound(0, 0)?, bound(1, length(value)?)?);
    let out = || wrong("slice", &format!("{from}:{to} is out of range"));
    match value {
        Value::Str(text) => Ok(Value::Str(text.get(from..to).ok_or_else(out)?.to_owned())),
        Value::List(list) => Ok(Value::List(list.get(from..to).ok_or_else(out)?.to_vec())),
        _ => Err(wrong("slice", "neither text nor a list")),
    }
}

fn order(name: &str, a: &Value, b: &Value) -> Result<std::cmp::Ordering> {
    match (a, b) {
        (Value::Str(a), Value::Str(b)) => Ok(a.cmp(b)),
        (Value::Int(a), Value::Int(b)) => Ok(a.cmp(b)),
        _ => Err(wrong(name, "incompatible types for comparison")),
    }
}

fn escape(text: &str, replace: impl Fn(char) -> Option<String>) -> String {
    text.chars().map(|c| replace(c).unwrap_or_else(|| c.to_string())).collect()
}

fn url_query(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            b' ' => out.push('+'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// The verbs `%s %v %d %q %t %x %X %c %%` with width, `-` and `0`.
fn printf(format: &str, values: &[Value]) -> String {
    let mut out = String::new();
    let mut values = values.iter();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut spec = String::new();
        while let Some(flag) = chars.next_if(|c| c.is_ascii_digit() || "-+# .".contains(*c)) {
            spec.push(flag);
        }
        let Some(verb) = chars.next() else {
            out.push_str("%!(NOVERB)");
            break;
        };
        if verb == '%' {
            out.push('%');
            continue;
        }
        let Some(value) = values.next() else {
            out.push_str(&format!("%!{verb}(MISSING)"));
            continue;
        };
        let text = match (verb, value) {
            ('s' | 'v', value) => value.to_string(),
            ('d', Value::Int(number)) => number.to_string(),
            ('t', Value::Bool(truth)) => truth.to_string(),
            ('q', Value::Str(text)) => format!("{text:?}"),
            ('x', Value::Int(number)) => format!("{number:x}"),
            ('X', Value::Int(number)) => format!("{number:X}"),
            ('x', Value::Str(text)) => text.bytes().map(|b| format!("{b:02x}")).collect(),
            ('c', Value::Int(code)) => {
                u32::try_from(*code).ok().and_then(char::from_u32).unwrap_or('\u{fffd}').to_string()
            }
            (verb, value) => format!("%!{verb}({value})"),
        };
        let width: usize = spec.trim_start_matches(['-', '0', '+', '#', ' ']).parse().unwrap_or(0).min(1024);
        out.push_str(&match (spec.contains('-'), spec.starts_with('0')) {
            (true, _) => format!("{text:<width$}"),
            (false, true) => match text.strip_prefix('-') {
                Some(digits) => format!("-{digits:0>w$}", w = width.saturating_sub(1)),
                None => format!("{text:0>width$}"),
            },
            (false, false) => format!("{text:>width$}"),
        });
    }
    if values.next().is_some() {
        out.push_str("%!(EXTRA)");
    }
    out
}
