//! Evaluates a parsed template.

use std::collections::BTreeMap;
use std::fmt;

use super::parse::{Node, Operand, Pipeline};
use super::printf::general;
use super::{Functions, Result, TemplateError, functions};

/// What templates compute with.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Text.
    Str(String),
    /// A whole number.
    Int(i64),
    /// A number with a point or an exponent.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A map: a missing key is an error.
    Map(BTreeMap<String, Value>),
    /// An object with fixed fields.
    Struct(BTreeMap<&'static str, Value>),
    /// A list.
    List(Vec<Value>),
    /// Nothing.
    Nil,
}

impl Value {
    /// What `if` takes for true: anything that is not zero or empty.
    pub(super) fn truth(&self) -> bool {
        match self {
            Value::Str(text) => !text.is_empty(),
            Value::Int(number) => *number != 0,
            Value::Float(number) => *number != 0.0,
            Value::Bool(truth) => *truth,
            Value::Map(map) => !map.is_empty(),
            Value::List(list) => !list.is_empty(),
            Value::Struct(_) => true,
            Value::Nil => false,
        }
    }

    fn field(&self, name: &str) -> Result<Value> {
        match self {
            Value::Map(map) => map
                .get(name)
                .cloned()
                .ok_or_else(|| TemplateError(format!("map has no entry for key {name:?}"))),
            Value::Struct(fields) => {
                fields.get(name).cloned().ok_or_else(|| TemplateError(format!("there is no field {name}")))
            }
            _ => Err(TemplateError(format!("can't take field {name} of {self}"))),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let spaced = |f: &mut fmt::Formatter<'_>, items: &mut dyn Iterator<Item = String>| {
            let items: Vec<_> = items.collect();
            f.write_str(&items.join(" "))
        };
        match self {
            Value::Str(text) => f.write_str(text),
            Value::Int(number) => write!(f, "{number}"),
            Value::Float(number) => f.write_str(&general(*number, None)),
            Value::Bool(truth) => write!(f, "{truth}"),
            Value::Nil => f.write_str("<nil>"),
            Value::List(items) => {
                f.write_str("[")?;
                spaced(f, &mut items.iter().map(Value::to_string))?;
                f.write_str("]")
            }
            Value::Map(map) => {
                f.write_str("map[")?;
                spaced(f, &mut map.iter().map(|(k, v)| format!("{k}:{v}")))?;
                f.write_str("]")
            }
            Value::Struct(fields) => {
                f.write_str("{")?;
                spaced(f, &mut fields.values().map(Value::to_string))?;
                f.write_str("}")
            }
        }
    }
}

/// Largest output, in bytes: nested loops over labels must not eat the daemon's memory.
const MAX_OUTPUT: usize = 4 * 1024 * 1024;

pub(super) struct Evaluator<'a> {
    pub(super) extra: &'a dyn Functions,
    pub(super) root: Value,
    vars: Vec<(String, Value)>,
    out: String,
}

impl<'a> Evaluator<'a> {
    pub(super) fn new(root: Value, extra: &'a dyn Functions) -> Self {
        Evaluator { extra, vars: vec![("$".to_owned(), root.clone())], root, out: String::new() }
    }

    pub(super) fn run(mut self, nodes: &[Node]) -> Result<String> {
        let root = self.root.clone();
        self.block(nodes, &root)?;
        Ok(self.out)
    }

    fn block(&mut self, nodes: &[Node], dot: &Value) -> Result<()> {
        let scope = self.vars.len();
        for node in nodes {
            match node {
                Node::Text(text) => self.out.push_str(text),
                Node::Action(pipeline) => {
                    let value = self.pipeline(pipeline, dot)?;
                    if pipeline.vars.is_empty() {
                        self.out.push_str(&value.to_string());
                    }
                }
                Node::If(pipeline, body, other) => {
                    let inner = self.vars.len();
                    let value = self.pipeline(pipeline, dot)?;
                    self.block(if value.truth() { body } else { other }, dot)?;
                    self.vars.truncate(inner);
                }
                Node::With(pipeline, body, other) => {
                    let inner = self.vars.len();
                    let value = self.pipeline(pipeline, dot)?;
                    if value.truth() {
                        self.block(body, &value)?;
                    } else {
                        self.block(other, dot)?;
                    }
                    self.vars.truncate(inner);
                }
                Node::Range(pipeline, body, other) => self.range(pipeline, body, other, dot)?,
            }
            if self.out.len() > MAX_OUTPUT {
                return Err(TemplateError(format!("the result is longer than {MAX_OUTPUT} bytes")));
            }
        }
        self.vars.truncate(scope);
        Ok(())
    }

    fn range(&mut self, pipeline: &Pipeline, body: &[Node], other: &[Node], dot: &Value) -> Result<()> {
        let value = self.commands(pipeline, dot)?;
        let items: Vec<(Value, Value)> = match value {
            Value::Map(map) => map.into_iter().map(|(k, v)| (Value::Str(k), v)).collect(),
            Value::List(list) => {
                list.into_iter().enumerate().map(|(i, v)| (Value::Int(i as i64), v)).collect()
            }
            Value::Nil => Vec::new(),
            value => return Err(TemplateError(format!("can't range over {value}"))),
        };
        if items.is_empty() {
            return self.block(other, dot);
        }
        let scope = self.vars.len();
        for (key, item) in items {
            match pipeline.vars.as_slice() {
                [value] => self.vars.push((value.clone(), item.clone())),
                [index, value] => {
                    self.vars.push((index.clone(), key));
                    self.vars.push((value.clone(), item.clone()));
                }
                _ => {}
            }
            self.block(body, &item)?;
            self.vars.truncate(scope);
        }
        Ok(())
    }

    /// The value of a pipeline, with its variable set.
    fn pipeline(&mut self, pipeline: &Pipeline, dot: &Value) -> Result<Value> {
        let value = self.commands(pipeline, dot)?;
        match pipeline.vars.as_slice() {
            [] => {}
            [name] if pipeline.assign => {
                let slot = self.vars.iter_mut().rev().find(|(known, _)| known == name);
                slot.ok_or_else(|| TemplateError(format!("undefined variable {name}")))?.1 = value.clone();
            }
            [name] => self.vars.push((name.clone(), value.clone())),
            _ => return Err(TemplateError("too many declarations".to_owned())),
        }
        Ok(value)
    }

    fn commands(&mut self, pipeline: &Pipeline, dot: &Value) -> Result<Value> {
        let mut last = None;
        for command in &pipeline.commands {
            last = Some(self.command(command, last, dot)?);
        }
        last.ok_or_else(|| TemplateError("missing value for command".to_owned()))
    }

    fn command(&mut self, operands: &[Operand], last: Option<Value>, dot: &Value) -> Result<Value> {
        let (first, rest) =
            operands.split_first().ok_or_else(|| TemplateError("empty command".to_owned()))?;
        let Operand::Function(name) = first else {
            if !rest.is_empty() || last.is_some() {
                return Err(TemplateError("can't give arguments to what is no function".to_owned()));
            }
            return self.operand(first, dot);
        };
        // `and` and `or` stop at the operand that decides.
        if matches!(name.as_str(), "and" | "or") {
            let mut value = Value::Nil;
            for operand in rest {
                value = self.operand(operand, dot)?;
                if value.truth() == (name == "or") {
                    return Ok(value);
                }
            }
            return match last {
                Some(last) => Ok(last),
                None if rest.is_empty() => Err(TemplateError(format!("{name} needs an argument"))),
                None => Ok(value),
            };
        }
        let mut args = rest.iter().map(|operand| self.operand(operand, dot)).collect::<Result<Vec<_>>>()?;
        args.extend(last);
        match self.extra.call(name, &args) {
            Some(result) => result,
            None => functions::call(name, &args),
        }
    }

    fn operand(&mut self, operand: &Operand, dot: &Value) -> Result<Value> {
        let (value, fields) = match operand {
            Operand::Literal(value) => return Ok(value.clone()),
            Operand::Function(_) => return self.command(std::slice::from_ref(operand), None, dot),
            Operand::Dot(fields) => (dot.clone(), fields),
            Operand::Variable(name, fields) => {
                let found = self.vars.iter().rev().find(|(known, _)| known == name);
                let (_, value) = found.ok_or_else(|| TemplateError(format!("undefined variable {name}")))?;
                (value.clone(), fields)
            }
            Operand::Group(pipeline, fields) => (self.pipeline(pipeline, dot)?, fields),
        };
        fields.iter().try_fold(value, |value, name| value.field(name))
    }
}
