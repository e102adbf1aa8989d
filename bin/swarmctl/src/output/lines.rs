//! Printing lines of logs: those of a task's standard error go to ours.

use std::io::{self, BufWriter, Write};

use swarm_api::log_lines::Line;
use swarm_api::v1::LogStream;

/// Bytes that are gathered for one write.
const BUFFER: usize = 64 * 1024;

/// What is shown of each line beside its text.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Shown {
    /// Not where it comes from.
    pub(crate) raw: bool,
    /// When it was written.
    pub(crate) timestamps: bool,
    /// Its attributes.
    pub(crate) details: bool,
}

/// A line and where it comes from.
pub(crate) struct Printed<'a> {
    pub(crate) source: usize,
    pub(crate) prefix: &'a str,
    pub(crate) line: Line<'a>,
}

/// Prints. What was printed is seen after a [`Printer::flush`].
pub(crate) struct Printer<O: Write = io::Stdout, E: Write = io::Stderr> {
    shown: Shown,
    out: Output<O>,
    err: Output<E>,
    /// The last line went to the standard error.
    to_err: bool,
}

struct Output<W: Write> {
    to: BufWriter<W>,
    dirty: bool,
    /// Whose line has not ended yet, if one has not.
    open: Option<usize>,
}

impl Printer {
    pub(crate) fn new(shown: Shown) -> Printer {
        Printer::to(shown, io::stdout(), io::stderr())
    }
}

impl<O: Write, E: Write> Printer<O, E> {
    fn to(shown: Shown, out: O, err: E) -> Printer<O, E> {
        Printer { shown, out: Output::new(out), err: Output::new(err), to_err: false }
    }

    /// Something was printed since the last flush.
    pub(crate) fn is_dirty(&self) -> bool {
        self.out.dirty || self.err.dirty
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()?;
        self.err.flush()
    }

    /// Tells people something beside the lines.
    pub(crate) fn note(&mut self, text: &str) {
        // Nobody can be told that this does not work.
        let _ = self.flush();
        let _ = writeln!(self.err.to, "Note: {text}").and_then(|()| self.err.to.flush());
    }

    pub(crate) fn print(&mut self, printed: &Printed<'_>) -> io::Result<()> {
        let to_err = printed.line.stream == LogStream::Stderr as i32;
        if to_err != self.to_err {
            // Where both go to one terminal they stay in order.
            self.to_err = to_err;
            self.flush()?;
        }
        if to_err { self.err.print(printed, self.shown) } else { self.out.print(printed, self.shown) }
    }
}

impl<W: Write> Output<W> {
    fn new(to: W) -> Output<W> {
        Output { to: BufWriter::with_capacity(BUFFER, to), dirty: false, open: None }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.dirty = false;
        self.to.flush()
    }

    fn print(&mut self, printed: &Printed<'_>, shown: Shown) -> io::Result<()> {
        let Printed { source, prefix, line } = printed;
        self.dirty = true;
        let plain = shown.raw && !shown.timestamps && !shown.details;
        // Agents of other makes cut long lines: the rest goes behind the beginning.
        if !plain && self.open != Some(*source) {
            if self.open.is_some() {
                self.to.write_all(b"\n")?;
            }
            if shown.timestamps {
                write!(self.to, "{} ", time(line))?;
            }
            if !shown.raw {
                self.to.write_all(prefix.as_bytes())?;
            }
            if shown.details {
                write!(self.to, "{} ", details(line, shown.raw))?;
            }
        }
        self.open = (!line.data.ends_with(b"\n")).then_some(*source);
        self.to.write_all(line.data)
    }
}

/// To the nanosecond, so that times stand below each other.
fn time(line: &Line<'_>) -> String {
    let time = line.timestamp.unwrap_or_default();
    let time = swarm_api::duration::to_system_time(&time).max(std::time::UNIX_EPOCH);
    humantime::format_rfc3339_nanos(time).to_string()
}

/// `key=value,…` in order, as Docker's command line has them: without the IDs, for which the prefix stands, and as they are;
/// where there is no prefix, with the IDs, and escaped as in URLs.
fn details(line: &Line<'_>, raw: bool) -> String {
    const IDS: [&str; 3] =
        ["com.docker.swarm.node.id", "com.docker.swarm.service.id", "com.docker.swarm.task.id"];
    let attributes = line.attributes().filter(|(key, _)| !IDS.contains(key));
    let mut all: Vec<String> = if raw {
        let ids = IDS.into_iter().zip([line.node_id, line.service_id, line.task_id]);
        ids.chain(attributes).map(|(key, value)| format!("{}={}", escaped(key), escaped(value))).collect()
    } else {
        attributes.map(|(key, value)| format!("{key}={value}")).collect()
    };
    all.sort_unstable();
    all.join(",")
}

/// As in the query of a URL: what is neither letter, digit nor one of `-_.~` in hexadecimal, and blanks as `+`.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(byte.into()),
            b' ' => out.push('+'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use prost_types::Timestamp;
    use swarm_api::log_lines::RawLogMessage;
    use swarm_api::v1::{LogAttr, LogContext, LogMessage};

    use super::*;

    fn message(stream: LogStream, text: &str) -> RawLogMessage {
        let attr = |key: &str, value: &str| LogAttr { key: key.into(), value: value.into() };
        let message = LogMessage {
            context: LogContext { service_id: "s".into(), node_id: "n".into(), task_id: "t".into() },
            timestamp: Some(Timestamp { seconds: 1, nanos: 5 }),
            stream: stream as i32,
            data: text.into(),
            attrs: vec![
                attr("z", "a b"),
                attr("a=", "1,ä"),
                attr("com.docker.swarm.node.id", "other"),
                attr("com.example.~id", "7"),
            ],
        };
        (&message).into()
    }

    fn printed(shown: Shown, lines: &[(usize, LogStream, &str)]) -> (String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut printer = Printer::to(shown, &mut out, &mut err);
        for (source, stream, text) in lines {
            let raw = message(*stream, text);
            let prefix = format!("web.{source}@host❯ ");
            let line = raw.read().unwrap();
            printer.print(&Printed { source: *source, prefix: &prefix, line }).unwrap();
        }
        printer.flush().unwrap();
        drop(printer);
        (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
    }

    #[test]
    fn each_line_says_where_it_comes_from_and_goes_where_it_went() {
        let lines =
            [(1, LogStream::Stdout, "a\n"), (2, LogStream::Stderr, "b\n"), (1, LogStream::Stdout, "\n")];
        let (out, err) = printed(Shown::default(), &lines);
        assert_eq!((out.as_str(), err.as_str()), ("web.1@host❯ a\nweb.1@host❯ \n", "web.2@host❯ b\n"));
        let (out, err) = printed(Shown { raw: true, ..Default::default() }, &lines);
        assert_eq!((out.as_str(), err.as_str()), ("a\n\n", "b\n"));
    }

    #[test]
    fn times_and_attributes_are_shown_when_asked_for() {
        let line = [(1, LogStream::Stdout, "a\n")];
        let (out, _) = printed(Shown { timestamps: true, ..Default::default() }, &line);
        assert_eq!(out, "1970-01-01T00:00:01.000000005Z web.1@host❯ a\n");
        let (out, _) = printed(Shown { details: true, ..Default::default() }, &line);
        assert_eq!(out, "web.1@host❯ a==1,ä,com.example.~id=7,z=a b a\n");
        let (out, _) = printed(Shown { details: true, timestamps: true, raw: false }, &line);
        assert!(out.starts_with("1970-01-01T00:00:01.000000005Z web.1@host❯ a=="), "{out}");
    }

    #[test]
    fn raw_lines_lack_only_the_names() {
        let line = [(1, LogStream::Stdout, "a\n")];
        let (out, _) = printed(Shown { timestamps: true, raw: true, details: false }, &line);
        assert_eq!(out, "1970-01-01T00:00:01.000000005Z a\n");
        let ids = "com.docker.swarm.node.id=n,com.docker.swarm.service.id=s,com.docker.swarm.task.id=t";
        let (out, _) = printed(Shown { details: true, raw: true, timestamps: false }, &line);
        assert_eq!(out, format!("a%3D=1%2C%C3%A4,{ids},com.example.~id=7,z=a+b a\n"));
        let cut =
            [(1, LogStream::Stdout, "cut"), (1, LogStream::Stdout, " off"), (2, LogStream::Stdout, "b\n")];
        let (out, _) = printed(Shown { timestamps: true, raw: true, details: false }, &cut);
        assert_eq!(out, "1970-01-01T00:00:01.000000005Z cut off\n1970-01-01T00:00:01.000000005Z b\n");
    }

    #[test]
    fn pieces_of_a_line_are_put_behind_each_other() {
        let lines = [
            (1, LogStream::Stdout, "one "),
            (1, LogStream::Stdout, "line\n"),
            (2, LogStream::Stdout, "cut"),
            (1, LogStream::Stdout, "next\n"),
        ];
        let (out, _) = printed(Shown::default(), &lines);
        assert_eq!(out, "web.1@host❯ one line\nweb.2@host❯ cut\nweb.1@host❯ next\n");
    }
}
