//! Text with `{{ … }}` actions into a tree.

use super::eval::Value;
use super::{Result, TemplateError};

/// Deepest nesting of blocks, and of parentheses: recursion must not exhaust the stack.
const MAX_DEPTH: usize = 64;

fn too_deep() -> TemplateError {
    TemplateError("nested too deeply".to_owned())
}

/// One piece of a template.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    /// Copied as it is.
    Text(String),
    /// Evaluated and printed (a declaration prints nothing).
    Action(Pipeline),
    /// `if`, with the branches for true and false.
    If(Pipeline, Vec<Node>, Vec<Node>),
    /// `with`: like `if`, and the dot is the value.
    With(Pipeline, Vec<Node>, Vec<Node>),
    /// `range`: the body once per element, or the other branch if there is none.
    Range(Pipeline, Vec<Node>, Vec<Node>),
}

/// Commands whose result each is the last argument of the next.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pipeline {
    /// Variables set by it, with their `$`.
    pub(super) vars: Vec<String>,
    /// `=` rather than `:=`: the variable exists.
    pub(super) assign: bool,
    pub(super) commands: Vec<Vec<Operand>>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Operand {
    Literal(Value),
    /// Fields of the dot; none means the dot itself.
    Dot(Vec<String>),
    Variable(String, Vec<String>),
    Function(String),
    Group(Box<Pipeline>, Vec<String>),
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Literal(Value),
    Word(String),
    Variable(String),
    /// `.name`, and whether white space stands before it (`.a .b` are two operands, `.a.b` is one).
    Field(String, bool),
    Dot,
    Open,
    Close,
    Pipe,
    Comma,
    Declare,
    Assign,
}

/// Parses a whole template.
pub(super) fn parse(text: &str) -> Result<Vec<Node>> {
    let mut parser = Parser { pieces: split(text)?.into_iter(), depth: 0 };
    let (nodes, end) = parser.block(true)?;
    debug_assert!(end == End::Text);
    Ok(nodes)
}

enum Piece {
    Text(String),
    Action(String),
}

/// Cuts text into literal pieces and actions, applying the trim markers.
fn split(text: &str) -> Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut rest = text;
    let mut trim_next = false;
    loop {
        let (literal, action) = match rest.find("{{") {
            None => (rest, None),
            Some(at) => (&rest[..at], Some(&rest[at + 2..])),
        };
        let literal = if trim_next { literal.trim_start() } else { literal };
        let Some(action) = action else {
            pieces.push(Piece::Text(literal.to_owned()));
            return Ok(pieces);
        };
        let (action, trim_before) = match action.strip_prefix('-') {
            Some(stripped) if stripped.starts_with(char::is_whitespace) => (stripped, true),
            _ => (action, false),
        };
        pieces.push(Piece::Text(if trim_before { literal.trim_end() } else { literal }.to_owned()));
        let end = end_of_action(action)?;
        let body = &action[..end];
        rest = &action[end + 2..];
        let (body, trim_after) = match body.strip_suffix('-') {
            Some(stripped) if stripped.ends_with(char::is_whitespace) => (stripped, true),
            _ => (body, false),
        };
        trim_next = trim_after;
        let body = body.trim();
        if !(body.starts_with("/*") && body.ends_with("*/")) {
            pieces.push(Piece::Action(body.to_owned()));
        }
    }
}

/// Where the `}}` of an action is, outside quotes and comments.
fn end_of_action(action: &str) -> Result<usize> {
    let bytes = action.as_bytes();
    let mut at = 0;
    if action.trim_start().starts_with("/*") {
        at = action.find("*/").ok_or_else(|| TemplateError("unclosed comment".to_owned()))?;
    }
    while at < bytes.len() {
        match bytes[at] {
            b'}' if bytes.get(at + 1) == Some(&b'}') => return Ok(at),
            b'"' | b'\'' => {
                let quote = bytes[at];
                at += 1;
                while at < bytes.len() && bytes[at] != quote {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
            }
            b'`' => {
                at += 1;
                while at < bytes.len() && bytes[at] != b'`' {
                    at += 1;
                }
            }
            _ => {}
        }
        at += 1;
    }
    Err(TemplateError("unclosed action".to_owned()))
}

#[derive(Debug, PartialEq)]
enum End {
    Text,
    Block,
    Else,
    /// `else if …` or `else with …`: keyword and the rest.
    ElseChain(String, String),
}

struct Parser {
    pieces: std::vec::IntoIter<Piece>,
    depth: usize,
}

impl Parser {
    /// Nodes up to the end of the block.
    fn block(&mut self, top: bool) -> Result<(Vec<Node>, End)> {
        let mut nodes = Vec::new();
        while let Some(piece) = self.pieces.next() {
            let action = match piece {
                Piece::Text(text) => {
                    if !text.is_empty() {
                        nodes.push(Node::Text(text));
                    }
                    continue;
                }
                Piece::Action(action) => action,
            };
            let (word, rest) = first_word(&action);
            match word {
                "if" | "with" | "range" => nodes.push(self.control(word, rest)?),
                "end" if !top && rest.is_empty() => return Ok((nodes, End::Block)),
                "else" if !top && rest.is_empty() => return Ok((nodes, End::Else)),
                "else" if !top => {
                    let (keyword, rest) = first_word(rest);
                    if !matches!(keyword, "if" | "with") {
                        return Err(TemplateError(format!("unexpected {keyword:?} after else")));
                    }
                    return Ok((nodes, End::ElseChain(keyword.to_owned(), rest.to_owned())));
                }
                "end" | "else" => return Err(TemplateError(format!("unexpected {{{{{word}}}}}"))),
                "define" | "template" | "block" | "break" | "continue" => {
                    return Err(TemplateError(format!("{{{{{word}}}}} is not supported")));
                }
                _ => nodes.push(Node::Action(pipeline(&action)?)),
            }
        }
        if top {
            Ok((nodes, End::Text))
        } else {
            Err(TemplateError("unexpected end of text, no {{end}}".to_owned()))
        }
    }

    fn control(&mut self, keyword: &str, condition: &str) -> Result<Node> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(too_deep());
        }
        let condition = pipeline(condition)?;
        let (body, end) = self.block(false)?;
        let other = match end {
            End::Block | End::Text => Vec::new(),
            End::ElseChain(keyword, rest) => vec![self.control(&keyword, &rest)?],
            End::Else => match self.block(false)? {
                (nodes, End::Block) => nodes,
                _ => return Err(TemplateError("more than one {{else}}".to_owned())),
            },
        };
        self.depth -= 1;
        Ok(match keyword {
            "if" => Node::If(condition, body, other),
            "with" => Node::With(condition, body, other),
            _ => Node::Range(condition, body, other),
        })
    }
}

fn first_word(action: &str) -> (&str, &str) {
    let end = action.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(action.len());
    (&action[..end], action[end..].trim_start())
}

fn pipeline(text: &str) -> Result<Pipeline> {
    let tokens = tokens(text)?;
    let mut cursor = Cursor { tokens: &tokens, at: 0, depth: 0 };
    let pipeline = cursor.pipeline()?;
    match cursor.next() {
        None => Ok(pipeline),
        Some(_) => Err(TemplateError(format!("unexpected text in action {text:?}"))),
    }
}

struct Cursor<'a> {
    tokens: &'a [Token],
    at: usize,
    depth: usize,
}

impl Cursor<'_> {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn next(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        token
    }

    fn pipeline(&mut self) -> Result<Pipeline> {
        let (vars, assign) = self.declaration();
        let mut commands = vec![self.command()?];
        while self.peek() == Some(&Token::Pipe) {
            self.at += 1;
            commands.push(self.command()?);
        }
        Ok(Pipeline { vars, assign, commands })
    }

    /// `$x :=`, `$x =`, `$k, $v :=`; nothing is consumed if it is none of them.
    fn declaration(&mut self) -> (Vec<String>, bool) {
        let vars = match self.tokens.get(self.at..) {
            Some([Token::Variable(a), Token::Declare | Token::Assign, ..]) => vec![a.clone()],
            Some(
                [Token::Variable(a), Token::Comma, Token::Variable(b), Token::Declare | Token::Assign, ..],
            ) => {
                vec![a.clone(), b.clone()]
            }
            _ => return (Vec::new(), false),
        };
        self.at += vars.len() * 2;
        (vars, self.tokens.get(self.at - 1) == Some(&Token::Assign))
    }

    fn command(&mut self) -> Result<Vec<Operand>> {
        let mut operands = Vec::new();
        loop {
            let operand = match self.peek() {
                None | Some(Token::Pipe | Token::Close) => break,
                Some(Token::Literal(value)) => Operand::Literal(value.clone()),
                Some(Token::Word(word)) => Operand::Function(word.clone()),
                Some(Token::Dot) => Operand::Dot(Vec::new()),
                Some(Token::Field(name, _)) => Operand::Dot(vec![name.clone()]),
                Some(Token::Variable(name)) => Operand::Variable(name.clone(), Vec::new()),
                Some(Token::Open) => {
                    self.at += 1;
                    self.depth += 1;
                    if self.depth > MAX_DEPTH {
                        return Err(too_deep());
                    }
                    let inner = self.pipeline()?;
                    self.depth -= 1;
                    if self.peek() != Some(&Token::Close) {
                        return Err(TemplateError("unclosed parenthesis".to_owned()));
                    }
                    Operand::Group(Box::new(inner), Vec::new())
                }
                Some(other) => return Err(TemplateError(format!("unexpected {other:?}"))),
            };
            self.at += 1;
            operands.push(self.with_fields(operand));
        }
        if operands.is_empty() {
            Err(TemplateError("missing value for command".to_owned()))
        } else {
            Ok(operands)
        }
    }

    fn with_fields(&mut self, mut operand: Operand) -> Operand {
        while let Some(Token::Field(name, false)) = self.peek() {
            match &mut operand {
                Operand::Dot(fields) | Operand::Variable(_, fields) | Operand::Group(_, fields) => {
                    fields.push(name.clone());
                }
                Operand::Literal(_) | Operand::Function(_) => break,
            }
            self.at += 1;
        }
        operand
    }
}

fn tokens(text: &str) -> Result<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut rest = text;
    loop {
        let trimmed = rest.trim_start();
        let spaced = trimmed.len() != rest.len() || tokens.is_empty();
        rest = trimmed;
        let Some(first) = rest.chars().next() else { return Ok(tokens) };
        let word_end =
            |from: &str| from.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(from.len());
        let (token, used) = match first {
            '(' => (Token::Open, 1),
            ')' => (Token::Close, 1),
            '|' => (Token::Pipe, 1),
            ',' => (Token::Comma, 1),
            '=' => (Token::Assign, 1),
            ':' if rest.starts_with(":=") => (Token::Declare, 2),
            '0'..='9' | '-' | '+' => number(rest)?,
            '.' if rest[1..].starts_with(|c: char| c.is_ascii_digit()) => number(rest)?,
            '.' => match word_end(&rest[1..]) {
                0 => (Token::Dot, 1),
                end => (Token::Field(rest[1..=end].to_owned(), spaced), end + 1),
            },
            '$' => {
                let end = word_end(&rest[1..]) + 1;
                (Token::Variable(rest[..end].to_owned()), end)
            }
            '"' | '`' | '\'' => quoted(rest, first)?,
            c if c.is_alphabetic() || c == '_' => {
                let end = word_end(rest);
                let token = match &rest[..end] {
                    "true" => Token::Literal(Value::Bool(true)),
                    "false" => Token::Literal(Value::Bool(false)),
                    "nil" => Token::Literal(Value::Nil),
                    word => Token::Word(word.to_owned()),
                };
                (token, end)
            }
            other => return Err(TemplateError(format!("unexpected {other:?} in action"))),
        };
        tokens.push(token);
        rest = &rest[used..];
    }
}

/// A number and the bytes it takes: whole ones to the bases 2, 8, 10 and 16, others with a point or an exponent.
fn number(text: &str) -> Result<(Token, usize)> {
    let mut end = 1;
    for (at, c) in text.char_indices().skip(1) {
        let exponent = text[..at].ends_with(['e', 'E']) && !text[..at].contains(['x', 'X']);
        if !(c.is_ascii_alphanumeric() || c == '.' || c == '_' || (matches!(c, '+' | '-') && exponent)) {
            break;
        }
        end = at + 1;
    }
    let whole = &text[..end];
    let value = integer(whole).map(Value::Int).or_else(|| {
        let float = whole.replace('_', "").parse::<f64>().ok().filter(|number| number.is_finite());
        float.filter(|_| whole.contains(['.', 'e', 'E'])).map(Value::Float)
    });
    let value = value.ok_or_else(|| TemplateError(format!("bad number {whole:?}")))?;
    Ok((Token::Literal(value), end))
}

fn integer(text: &str) -> Option<i64> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let lower = digits.to_ascii_lowercase();
    let (rest, radix) = match lower.as_bytes() {
        [b'0', b'x', ..] => (&digits[2..], 16),
        [b'0', b'o', ..] => (&digits[2..], 8),
        [b'0', b'b', ..] => (&digits[2..], 2),
        [b'0', _, ..] => (&digits[1..], 8),
        _ => (digits, 10),
    };
    if !rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_') {
        return None;
    }
    let number = i128::from_str_radix(&rest.replace('_', ""), radix).ok()?;
    i64::try_from(if text.starts_with('-') { -number } else { number }).ok()
}

/// A quoted string (or character) and the number of bytes it takes.
fn quoted(text: &str, quote: char) -> Result<(Token, usize)> {
    let unterminated = || TemplateError("unterminated quoted string".to_owned());
    if quote == '`' {
        let end = text[1..].find('`').ok_or_else(unterminated)?;
        return Ok((Token::Literal(Value::Str(text[1..=end].to_owned())), end + 2));
    }
    let mut value = String::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        if c == quote {
            let literal = match (quote, value.chars().next()) {
                ('\'', Some(single)) if value.chars().count() == 1 => {
                    Value::Int(i64::from(u32::from(single)))
                }
                ('\'', _) => return Err(TemplateError("bad character constant".to_owned())),
                _ => Value::Str(value),
            };
            return Ok((Token::Literal(literal), at + 1));
        }
        if c != '\\' {
            value.push(c);
            continue;
        }
        let (_, escaped) = chars.next().ok_or_else(unterminated)?;
        let digits = match escaped {
            'n' => {
                value.push('\n');
                continue;
            }
            't' => {
                value.push('\t');
                continue;
            }
            'r' => {
                value.push('\r');
                continue;
            }
            '\\' | '"' | '\'' => {
                value.push(escaped);
                continue;
            }
            'x' => 2,
            'u' => 4,
            'U' => 8,
            other => return Err(TemplateError(format!("unknown escape \\{other}"))),
        };
        let hex: String = chars.by_ref().take(digits).map(|(_, c)| c).collect();
        let code = u32::from_str_radix(&hex, 16).ok().and_then(char::from_u32);
        value.push(code.ok_or_else(|| TemplateError(format!("bad escape \\{escaped}{hex}")))?);
    }
    Err(unterminated())
}
