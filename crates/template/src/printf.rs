//! `printf`: texts out of verbs, as Go's `fmt` has them.

use super::eval::Value;

/// Widest field, and most digits: a format must not eat the daemon's memory.
const MOST: usize = 1024;

/// What stands between `%` and the verb.
#[derive(Debug, Default, Clone, Copy)]
struct Spec {
    minus: bool,
    plus: bool,
    sharp: bool,
    space: bool,
    zero: bool,
    width: usize,
    precision: Option<usize>,
}

struct Arguments<'a> {
    values: &'a [Value],
    next: usize,
    /// Some were named by number, so that those left over are no mistake.
    numbered: bool,
}

impl<'a> Arguments<'a> {
    fn next(&mut self) -> Option<&'a Value> {
        let value = self.values.get(self.next);
        self.next += 1;
        value
    }
}

/// Fills in a format. Mistakes stand in the result: `%!d(string=a)`.
pub(super) fn printf(format: &str, values: &[Value]) -> String {
    let mut out = String::new();
    let mut args = Arguments { values, next: 0, numbered: false };
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let mut spec = Spec::default();
        while let Some(flag) = rest.chars().next() {
            match flag {
                '-' => spec.minus = true,
                '+' => spec.plus = true,
                '#' => spec.sharp = true,
                ' ' => spec.space = true,
                '0' => spec.zero = true,
                _ => break,
            }
            rest = &rest[1..];
        }
        let mut bad_index = numbered(&mut rest, &mut args);
        match number(&mut rest, &mut args) {
            Some(Ok(width)) => {
                spec.minus |= width < 0;
                spec.width = usize::try_from(width.unsigned_abs()).unwrap_or(MOST).min(MOST);
            }
            Some(Err(())) => out.push_str("%!(BADWIDTH)"),
            None => {}
        }
        if let Some(after) = rest.strip_prefix('.') {
            rest = after;
            bad_index |= numbered(&mut rest, &mut args);
            spec.precision = match number(&mut rest, &mut args) {
                None => Some(0),
                Some(Ok(digits)) => usize::try_from(digits).ok().map(|digits| digits.min(MOST)),
                Some(Err(())) => {
                    out.push_str("%!(BADPREC)");
                    None
                }
            };
        }
        bad_index |= numbered(&mut rest, &mut args);
        let Some(verb) = rest.chars().next() else {
            out.push_str("%!(NOVERB)");
            break;
        };
        rest = &rest[verb.len_utf8()..];
        if verb == '%' {
            out.push('%');
        } else if bad_index {
            out.push_str(&format!("%!{verb}(BADINDEX)"));
        } else {
            match args.next() {
                Some(value) => out.push_str(&formatted(spec, verb, value)),
                None => out.push_str(&format!("%!{verb}(MISSING)")),
            }
        }
    }
    out.push_str(rest);
    if !args.numbered && args.next < values.len() {
        let extra: Vec<String> = values[args.next..].iter().map(typed).collect();
        out.push_str(&format!("%!(EXTRA {})", extra.join(", ")));
    }
    out
}

/// Takes `[n]`, which names the argument to go on with. True if there is none of that number.
fn numbered(rest: &mut &str, args: &mut Arguments<'_>) -> bool {
    let Some(after) = rest.strip_prefix('[') else { return false };
    args.numbered = true;
    let Some((index, after)) = after.split_once(']') else { return true };
    *rest = after;
    match index.parse::<usize>() {
        Ok(index) if (1..=args.values.len()).contains(&index) => {
            args.next = index - 1;
            false
        }
        _ => true,
    }
}

/// Takes a number, or `*` for that of the next argument.
fn number(rest: &mut &str, args: &mut Arguments<'_>) -> Option<Result<i64, ()>> {
    if let Some(after) = rest.strip_prefix('*') {
        *rest = after;
        return Some(match args.next() {
            Some(Value::Int(number)) => Ok(*number),
            _ => Err(()),
        });
    }
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (digits, after) = rest.split_at(end);
    *rest = after;
    (!digits.is_empty()).then(|| Ok(digits.parse().unwrap_or(MOST as i64)))
}

/// `type=value`, as mistakes name an argument.
fn typed(value: &Value) -> String {
    match value {
        Value::Nil => "<nil>".to_owned(),
        value => format!("{}={value}", type_name(value)),
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Str(_) => "string",
        Value::Int(_) => "int",
        Value::Float(_) => "float64",
        Value::Bool(_) => "bool",
        Value::Map(_) => "map[string]string",
        Value::List(_) => "[]interface {}",
        Value::Struct(_) => "struct",
        Value::Nil => "<nil>",
    }
}

fn formatted(spec: Spec, verb: char, value: &Value) -> String {
    let wrong = || format!("%!{verb}({})", typed(value));
    match (verb, value) {
        ('T', value) => pad(spec, type_name(value).to_owned()),
        ('v', Value::Nil) => pad(spec, "<nil>".to_owned()),
        ('v', Value::Str(text)) if spec.sharp => pad(spec, quote(text, '"')),
        ('s' | 'v', Value::Str(text)) => pad(spec, cut(spec, text).to_owned()),
        ('q', Value::Str(text)) if spec.sharp && !text.contains(['`', '\n']) => {
            pad(spec, format!("`{}`", cut(spec, text)))
        }
        ('q', Value::Str(text)) => pad(spec, quote(cut(spec, text), '"')),
        ('x' | 'X', Value::Str(text)) => pad(spec, hexadecimal(spec, verb == 'X', text)),
        ('t' | 'v', Value::Bool(truth)) => pad(spec, truth.to_string()),
        ('d' | 'v', Value::Int(number)) => integer(spec, *number, 10, "", false),
        ('b', Value::Int(number)) => integer(spec, *number, 2, "0b", false),
        ('o', Value::Int(number)) => integer(spec, *number, 8, "0", false),
        ('O', Value::Int(number)) => integer(Spec { sharp: true, ..spec }, *number, 8, "0o", false),
        ('x', Value::Int(number)) => integer(spec, *number, 16, "0x", false),
        ('X', Value::Int(number)) => integer(spec, *number, 16, "0X", true),
        ('c', Value::Int(code)) => pad(spec, character(*code).to_string()),
        ('q', Value::Int(code)) => pad(spec, quote(character(*code).encode_utf8(&mut [0; 4]), '\'')),
        ('U', Value::Int(code)) => pad(spec, format!("U+{code:04X}")),
        ('e' | 'E' | 'f' | 'F' | 'g' | 'G' | 'v', Value::Float(number)) => float(spec, verb, *number),
        // Of what is composed, each part.
        (verb, Value::List(items)) => {
            let items: Vec<String> = items.iter().map(|item| formatted(spec, verb, item)).collect();
            format!("[{}]", items.join(" "))
        }
        (verb, Value::Map(map)) => {
            let key = |key: &String| formatted(spec, verb, &Value::Str(key.clone()));
            let pairs: Vec<String> =
                map.iter().map(|(k, v)| format!("{}:{}", key(k), formatted(spec, verb, v))).collect();
            format!("map[{}]", pairs.join(" "))
        }
        (verb, Value::Struct(fields)) => {
            let fields: Vec<String> = fields.values().map(|field| formatted(spec, verb, field)).collect();
            format!("{{{}}}", fields.join(" "))
        }
        _ => wrong(),
    }
}

/// As many characters as the precision says.
fn cut(spec: Spec, text: &str) -> &str {
    let end = spec.precision.and_then(|most| text.char_indices().nth(most));
    end.map_or(text, |(end, _)| &text[..end])
}

/// Blanks up to the width.
fn pad(spec: Spec, text: String) -> String {
    let width = spec.width;
    match (spec.minus, spec.zero) {
        (true, _) => format!("{text:<width$}"),
        (false, true) => format!("{text:0>width$}"),
        (false, false) => format!("{text:>width$}"),
    }
}

fn sign(spec: Spec, negative: bool) -> &'static str {
    match negative {
        true => "-",
        false if spec.plus => "+",
        false if spec.space => " ",
        false => "",
    }
}

/// A number behind its sign: zeros go between the two.
fn signed(spec: Spec, sign: &str, digits: &str) -> String {
    if spec.zero && !spec.minus {
        let width = spec.width.saturating_sub(sign.len());
        return format!("{sign}{digits:0>width$}");
    }
    pad(Spec { zero: false, ..spec }, format!("{sign}{digits}"))
}

fn integer(spec: Spec, number: i64, radix: u64, prefix: &str, upper: bool) -> String {
    let mut rest = number.unsigned_abs();
    let mut digits = Vec::new();
    while rest > 0 || digits.is_empty() {
        let digit = char::from_digit((rest % radix) as u32, radix as u32).unwrap_or('0');
        digits.push(if upper { digit.to_ascii_uppercase() } else { digit });
        rest /= radix;
    }
    // No digits at all is what a precision of zero makes of zero.
    if spec.precision == Some(0) && number == 0 {
        digits.clear();
    }
    let digits: String = digits.into_iter().rev().collect();
    let least = spec.precision.unwrap_or(0);
    let digits = format!("{digits:0>least$}");
    let prefix = if spec.sharp { prefix } else { "" };
    let sign = format!("{}{prefix}", sign(spec, number < 0));
    // A precision says how many zeros there are.
    signed(Spec { zero: spec.zero && spec.precision.is_none(), ..spec }, &sign, &digits)
}

fn character(code: i64) -> char {
    u32::try_from(code).ok().and_then(char::from_u32).unwrap_or(char::REPLACEMENT_CHARACTER)
}

fn hexadecimal(spec: Spec, upper: bool, text: &str) -> String {
    let bytes = &text.as_bytes()[..spec.precision.map_or(text.len(), |most| most.min(text.len()))];
    let prefix = match (spec.sharp, upper) {
        (false, _) => "",
        (true, false) => "0x",
        (true, true) => "0X",
    };
    let one = |byte: &u8| if upper { format!("{byte:02X}") } else { format!("{byte:02x}") };
    let bytes: Vec<String> = bytes.iter().map(one).collect();
    match (bytes.is_empty(), spec.space) {
        (true, _) => String::new(),
        (false, true) => bytes.iter().map(|byte| format!("{prefix}{byte}")).collect::<Vec<_>>().join(" "),
        (false, false) => format!("{prefix}{}", bytes.concat()),
    }
}

fn float(spec: Spec, verb: char, number: f64) -> String {
    let digits = match (verb, spec.precision) {
        ('f' | 'F', precision) => format!("{:.*}", precision.unwrap_or(6), number.abs()),
        ('e' | 'E', precision) => exponential(number.abs(), Some(precision.unwrap_or(6))),
        (_, precision) => general(number.abs(), precision),
    };
    let digits = if verb.is_ascii_uppercase() { digits.to_ascii_uppercase() } else { digits };
    signed(spec, sign(spec, number.is_sign_negative()), &digits)
}

/// One digit, the point, the others, and an exponent of two digits at least.
fn exponential(number: f64, precision: Option<usize>) -> String {
    let text = match precision {
        Some(digits) => format!("{number:.digits$e}"),
        None => format!("{number:e}"),
    };
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, exponent) = match exponent.strip_prefix('-') {
        Some(exponent) => ('-', exponent),
        None => ('+', exponent),
    };
    format!("{digits}e{sign}{exponent:0>2}")
}

/// The shortest of the two forms, with as many digits as tell the number from all others, or as the precision says.
pub(super) fn general(number: f64, precision: Option<usize>) -> String {
    let precision = precision.map(|digits| digits.max(1));
    let scientific = exponential(number, precision.map(|digits| digits - 1));
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let digits =
        if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { digits };
    let significant = digits.chars().filter(char::is_ascii_digit).count();
    // The shortest form counts as one of six digits.
    let limit = match precision {
        None => 6,
        Some(precision) if precision > significant && significant as i32 > exponent => significant as i32,
        Some(precision) => precision as i32,
    };
    if exponent < -4 || exponent >= limit {
        let (_, exponent) = scientific.split_once('e').unwrap_or(("", "+00"));
        return format!("{digits}e{exponent}");
    }
    let decimals = (significant as i32 - 1 - exponent).max(0) as usize;
    format!("{number:.decimals$}")
}

/// A text between quotation marks, as Go's source has it.
fn quote(text: &str, mark: char) -> String {
    let mut out = String::from(mark);
    for c in text.chars() {
        match c {
            c if c == mark || c == '\\' => out.extend(['\\', c]),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            c if is_printable(c) => out.push(c),
            c if u32::from(c) < 0x80 => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if u32::from(c) < 0x1_0000 => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push_str(&format!("\\U{:08x}", u32::from(c))),
        }
    }
    out.push(mark);
    out
}

/// Nothing has to stand for it in a text.
pub(super) fn is_printable(c: char) -> bool {
    matches!(c, '"' | '\'' | '\\') || c.escape_debug().eq(std::iter::once(c))
}
