//! Gives certain fields of text the type `crate::Text`, and their messages a `Message` of their own.
//!
//! There may be millions of tasks, each in several versions at a time. Their ids and the words of their statuses behind a
//! reference count make another version of a task one allocation. prost's macro knows `String` alone, so what it would
//! write for these messages is written here, from the attributes it would read.

use std::fmt::Write as _;

/// Messages, and their fields that are texts.
const TEXTS: &[(&str, &[&str])] =
    &[("Task", &["id", "service_id", "node_id"]), ("TaskStatus", &["message", "err", "applied_by"])];

/// A field as prost would see it.
struct Field {
    name: String,
    /// What the attribute says: the kind, with its label, and the tag.
    kind: String,
    label: &'static str,
    /// Of an enumeration or a oneof.
    of: String,
    tags: Vec<u32>,
    text: bool,
}

/// Rewrites these messages in generated code; everything else stays as it is.
pub(crate) fn rewrite(code: &str) -> String {
    let mut out = String::with_capacity(code.len() + 16_384);
    let mut lines = code.lines().peekable();
    while let Some(line) = lines.next() {
        let next = lines.peek().copied().unwrap_or_default();
        let begins =
            |name: &str| line.contains("::prost::Message)]") && next == format!("pub struct {name} {{");
        let message = TEXTS.iter().find(|(name, _)| begins(name));
        let Some((name, texts)) = message else {
            let _ = writeln!(out, "{line}");
            continue;
        };
        let _ = writeln!(out, "#[derive(Clone, Default, PartialEq)]");
        let (mut fields, mut attribute) = (Vec::new(), "");
        for line in lines.by_ref() {
            let trimmed = line.trim_start();
            if trimmed.starts_with("#[prost(") {
                attribute = trimmed;
                continue;
            }
            let field = trimmed.strip_prefix("pub ").and_then(|field| field.split_once(": "));
            match field {
                Some((field, _)) if texts.contains(&field) => {
                    let _ = writeln!(out, "    pub {field}: crate::Text,");
                }
                _ => {
                    let _ = writeln!(out, "{line}");
                }
            }
            if let Some((field, _)) = field {
                fields.push(Field::parse(field, attribute, texts.contains(&field)));
            }
            if line == "}" {
                break;
            }
        }
        describe(name, &fields, &mut out);
        // On the wire, fields are in the order of their tags.
        fields.sort_by_key(|field| field.tags[0]);
        implement(name, &fields, &mut out);
    }
    out
}

impl Field {
    fn parse(name: &str, attribute: &str, text: bool) -> Field {
        let inner = attribute.trim_start_matches("#[prost(").trim_end_matches(")]");
        let quoted = |key: &str| {
            let (_, value) = inner.split_once(&format!("{key} = \""))?;
            value.split_once('"').map(|(value, _)| value.to_owned())
        };
        let kind = inner.split([',', ' ']).next().unwrap_or_default().to_owned();
        let says = |label: &str| inner.split(", ").any(|part| part == label);
        let label = ["required", "repeated", "optional"].into_iter().find(|label| says(label)).unwrap_or("");
        let tags = quoted("tags").or_else(|| quoted("tag")).unwrap_or_default();
        let tags = tags.split(", ").map(|tag| tag.parse().expect("a tag is a number")).collect();
        let of = quoted(&kind).unwrap_or_default();
        Field { name: name.to_owned(), kind, label, of, tags, text }
    }

    /// What becomes of the field: how it is written, read and measured.
    fn code(&self) -> [String; 3] {
        let (name, kind, tag) = (&self.name, &self.kind, self.tags[0]);
        let encoding = "::prost::encoding";
        let merge = |with: &str, value: &str| format!("{with}::merge(wire_type, {value}, buf, ctx)");
        match (kind.as_str(), self.label) {
            ("string", "") if self.text => [
                format!("crate::text::encode({tag}u32, &self.{name}, buf);"),
                merge("crate::text", &format!("&mut self.{name}")),
                format!("crate::text::encoded_len({tag}u32, &self.{name})"),
            ],
            ("uint64", "") => [
                format!("if self.{name} != 0 {{ {encoding}::uint64::encode({tag}u32, &self.{name}, buf); }}"),
                merge(&format!("{encoding}::uint64"), &format!("&mut self.{name}")),
                format!(
                    "if self.{name} != 0 {{ {encoding}::uint64::encoded_len({tag}u32, &self.{name}) }} else {{ 0 }}"
                ),
            ],
            ("enumeration", "") => {
                let set = format!("self.{name} != {}::default() as i32", self.of);
                [
                    format!("if {set} {{ {encoding}::int32::encode({tag}u32, &self.{name}, buf); }}"),
                    merge(&format!("{encoding}::int32"), &format!("&mut self.{name}")),
                    format!(
                        "if {set} {{ {encoding}::int32::encoded_len({tag}u32, &self.{name}) }} else {{ 0 }}"
                    ),
                ]
            }
            ("message", "required") => [
                format!("{encoding}::message::encode({tag}u32, &self.{name}, buf);"),
                merge(&format!("{encoding}::message"), &format!("&mut self.{name}")),
                format!("{encoding}::message::encoded_len({tag}u32, &self.{name})"),
            ],
            ("message", "optional") => [
                format!(
                    "if let Some(value) = &self.{name} {{ {encoding}::message::encode({tag}u32, value, buf); }}"
                ),
                merge(
                    &format!("{encoding}::message"),
                    &format!("self.{name}.get_or_insert_with(Default::default)"),
                ),
                format!(
                    "self.{name}.as_ref().map_or(0, |value| {encoding}::message::encoded_len({tag}u32, value))"
                ),
            ],
            ("message", "repeated") => [
                format!("for value in &self.{name} {{ {encoding}::message::encode({tag}u32, value, buf); }}"),
                format!("{encoding}::message::merge_repeated(wire_type, &mut self.{name}, buf, ctx)"),
                format!("{encoding}::message::encoded_len_repeated({tag}u32, &self.{name})"),
            ],
            ("oneof", "") => [
                format!("if let Some(value) = &self.{name} {{ value.encode(buf); }}"),
                format!("{}::merge(&mut self.{name}, tag, wire_type, buf, ctx)", self.of),
                format!("self.{name}.as_ref().map_or(0, {}::encoded_len)", self.of),
            ],
            _ => panic!("no code for fields like {name}: {kind} {}", self.label),
        }
    }
}

/// Numbers of enumerations are shown by their names, where they have one.
fn describe(name: &str, fields: &[Field], out: &mut String) {
    let _ = write!(
        out,
        "impl ::core::fmt::Debug for {name} {{\n    \
         fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {{\n        \
         let mut builder = f.debug_struct({name:?});\n"
    );
    for Field { name, kind, of, .. } in fields {
        let _ = if kind == "enumeration" {
            write!(
                out,
                "        match <{of} as ::core::convert::TryFrom<i32>>::try_from(self.{name}) {{\n            \
                 Ok(value) => builder.field({name:?}, &value),\n            \
                 Err(_) => builder.field({name:?}, &self.{name}),\n        }};\n"
            )
        } else {
            writeln!(out, "        builder.field({name:?}, &self.{name});")
        };
    }
    out.push_str("        builder.finish()\n    }\n}\n");
}

fn implement(name: &str, fields: &[Field], out: &mut String) {
    let (mut writes, mut reads, mut lengths) = (String::new(), String::new(), Vec::new());
    let mut accessors = String::new();
    for field in fields {
        let [write, read, length] = field.code();
        let tags: Vec<String> = field.tags.iter().map(|tag| format!("{tag}u32")).collect();
        let _ = writeln!(writes, "        {write}");
        let _ = writeln!(reads, "            {} => ({:?}, {read}),", tags.join(" | "), field.name);
        lengths.push(length);
        if field.kind == "enumeration" {
            let (field, of) = (&field.name, &field.of);
            let _ = write!(
                accessors,
                "    /// Returns the enum value of `{field}`, or the default if the field is set to an invalid enum value.\n    \
                 pub fn {field}(&self) -> {of} {{\n        \
                 ::core::convert::TryFrom::try_from(self.{field}).unwrap_or({of}::default())\n    }}\n    \
                 /// Sets `{field}` to the provided enum value.\n    \
                 pub fn set_{field}(&mut self, value: {of}) {{\n        self.{field} = value as i32;\n    }}\n"
            );
        }
    }
    let _ = write!(
        out,
        "impl ::prost::Message for {name} {{\n    \
         fn encode_raw(&self, buf: &mut impl ::prost::bytes::BufMut) {{\n{writes}    }}\n    \
         fn merge_field(\n        &mut self,\n        tag: u32,\n        wire_type: ::prost::encoding::WireType,\n        \
         buf: &mut impl ::prost::bytes::Buf,\n        ctx: ::prost::encoding::DecodeContext,\n    \
         ) -> ::core::result::Result<(), ::prost::DecodeError> {{\n        \
         let (field, read) = match tag {{\n{reads}            \
         _ => return ::prost::encoding::skip_field(wire_type, tag, buf, ctx),\n        }};\n        \
         read.map_err(|mut error: ::prost::DecodeError| {{\n            \
         error.push({name:?}, field);\n            error\n        }})\n    }}\n    \
         fn encoded_len(&self) -> usize {{\n        {}\n    }}\n    \
         fn clear(&mut self) {{\n        *self = Self::default();\n    }}\n}}\n\
         impl {name} {{\n{accessors}}}\n",
        lengths.join("\n            + ")
    );
}
