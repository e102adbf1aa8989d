//! The functions that every template has.

use super::eval::Value;
use super::printf::{is_printable, printf};
use super::{Result, TemplateError};

fn wrong(name: &str, what: &str) -> TemplateError {
    TemplateError(format!("{name}: {what}"))
}

/// The operands behind each other, with a blank between two of which neither is text.
fn print(args: &[Value]) -> String {
    let is_text = |at: usize| matches!(args[at], Value::Str(_));
    let mut out = String::new();
    for (at, value) in args.iter().enumerate() {
        if at > 0 && !is_text(at) && !is_text(at - 1) {
            out.push(' ');
        }
        out.push_str(&value.to_string());
    }
    out
}

/// Calls a built-in function.
pub(super) fn call(name: &str, args: &[Value]) -> Result<Value> {
    Ok(match (name, args) {
        ("not", [value]) => Value::Bool(!value.truth()),
        ("len", [value]) => Value::Int(length(value)? as i64),
        ("index", [value, keys @ ..]) => {
            keys.iter().try_fold(value.clone(), |value, key| index(&value, key))?
        }
        ("slice", [value, bounds @ ..]) if bounds.len() <= 2 => slice(value, bounds)?,
        ("eq", [first, others @ ..]) if !others.is_empty() => {
            for other in others {
                if equal(name, first, other)? {
                    return Ok(Value::Bool(true));
                }
            }
            Value::Bool(false)
        }
        ("ne", [a, b]) => Value::Bool(!equal(name, a, b)?),
        ("lt", [a, b]) => Value::Bool(order(name, a, b)?.is_lt()),
        ("le", [a, b]) => Value::Bool(order(name, a, b)?.is_le()),
        ("gt", [a, b]) => Value::Bool(order(name, a, b)?.is_gt()),
        ("ge", [a, b]) => Value::Bool(order(name, a, b)?.is_ge()),
        ("print", _) => Value::Str(print(args)),
        ("println", _) => Value::Str(args.iter().map(Value::to_string).collect::<Vec<_>>().join(" ") + "\n"),
        ("printf", [Value::Str(format), values @ ..]) => Value::Str(printf(format, values)),
        ("join", [Value::Str(separator), values @ ..]) => {
            Value::Str(values.iter().map(Value::to_string).collect::<Vec<_>>().join(separator))
        }
        ("html", _) => Value::Str(escape(&print(args), |c| match c {
            '\0' => Some("\u{fffd}".to_owned()),
            '<' => Some("&lt;".to_owned()),
            '>' => Some("&gt;".to_owned()),
            '&' => Some("&amp;".to_owned()),
            '"' => Some("&#34;".to_owned()),
            '\'' => Some("&#39;".to_owned()),
            _ => None,
        })),
        ("js", _) => Value::Str(escape(&print(args), |c| match c {
            '\\' | '\'' | '"' => Some(format!("\\{c}")),
            '<' | '>' | '&' | '=' => Some(format!("\\u{:04X}", u32::from(c))),
            c if c < ' ' || (!c.is_ascii() && !is_printable(c)) => Some(format!("\\u{:04X}", u32::from(c))),
            _ => None,
        })),
        ("urlquery", _) => Value::Str(url_query(&print(args))),
        ("call", [first, ..]) => return Err(wrong(name, &format!("{first} is no function"))),
        (
            "not" | "len" | "index" | "slice" | "eq" | "ne" | "lt" | "le" | "gt" | "ge" | "printf" | "join"
            | "call",
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

const INCOMPATIBLE: &str = "incompatible types for comparison";

fn equal(name: &str, a: &Value, b: &Value) -> Result<bool> {
    use Value::{Bool, Float, Int, Nil, Str, Struct};
    match (a, b) {
        (Str(_), Str(_)) | (Int(_), Int(_)) | (Float(_), Float(_)) | (Bool(_), Bool(_)) => Ok(a == b),
        (Struct(_), Struct(_)) | (Nil, _) | (_, Nil) => Ok(a == b),
        (Value::Map(_) | Value::List(_), _) | (_, Value::Map(_) | Value::List(_)) => {
            Err(wrong(name, "maps and lists can't be compared"))
        }
        _ => Err(wrong(name, INCOMPATIBLE)),
    }
}

fn order(name: &str, a: &Value, b: &Value) -> Result<std::cmp::Ordering> {
    match (a, b) {
        (Value::Str(a), Value::Str(b)) => Ok(a.cmp(b)),
        (Value::Int(a), Value::Int(b)) => Ok(a.cmp(b)),
        (Value::Float(a), Value::Float(b)) => Ok(a.total_cmp(b)),
        (Value::Bool(_), Value::Bool(_)) => Err(wrong(name, "invalid type for comparison")),
        _ => Err(wrong(name, INCOMPATIBLE)),
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
