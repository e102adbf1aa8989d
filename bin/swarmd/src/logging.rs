//! The log: one line an event on standard error, `time=… level=… msg="…" key=value …` with sorted keys, or a
//! coloured short form on a terminal.

use std::fmt;
use std::io::IsTerminal as _;
use std::time::Instant;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Our crates log at the chosen level; libraries only what goes wrong, unless everything is asked for.
pub(crate) fn init(level: LevelFilter) {
    let libraries = level.min(LevelFilter::WARN);
    let all = Targets::new().with_default(level);
    let filter = if level >= LevelFilter::TRACE {
        let talkative =
            ["h2", "hyper", "hyper_util", "sled", "tower"].map(|library| (library, LevelFilter::DEBUG));
        // Never bollard: it writes whole requests into its log, with the environment of containers.
        all.with_targets(talkative).with_target("bollard", LevelFilter::WARN)
    } else {
        let quiet = ["h2", "hyper", "hyper_util", "tonic", "tower", "sled", "bollard", "raft"];
        all.with_targets(quiet.map(|library| (library, libraries))).with_target("rustls", LevelFilter::ERROR)
    };
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .event_format(Format { terminal: std::io::stderr().is_terminal(), start: Instant::now() });
    tracing_subscriber::registry().with(lines).with(filter).init();
}

struct Format {
    terminal: bool,
    start: Instant,
}

/// What an event says. Its keys are few, so that a list does.
#[derive(Default)]
struct Fields {
    message: String,
    fields: Vec<(&'static str, String)>,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.to_owned());
    }
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }
}

impl Fields {
    fn put(&mut self, field: &Field, value: String) {
        if field.name() == "message" {
            self.message = value;
        } else {
            self.fields.push((field.name(), value));
        }
    }
}

/// A value as the original writes it: bare if it holds nothing but these characters, else quoted.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Quoted(value) = self;
        let bare =
            !value.is_empty() && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._/@^+".contains(&b));
        if bare { f.write_str(value) } else { write!(f, "{value:?}") }
    }
}

fn level(level: Level) -> (&'static str, &'static str) {
    match level {
        Level::ERROR => ("error", "\x1b[31mERRO\x1b[0m"),
        Level::WARN => ("warning", "\x1b[33mWARN\x1b[0m"),
        Level::INFO => ("info", "\x1b[36mINFO\x1b[0m"),
        Level::DEBUG => ("debug", "\x1b[37mDEBU\x1b[0m"),
        Level::TRACE => ("trace", "\x1b[37mTRAC\x1b[0m"),
    }
}

impl<S, N> FormatEvent<S, N> for Format
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let (name, short) = level(*event.metadata().level());
        if self.terminal {
            write!(writer, "{short}[{:04}] {:<44}", self.start.elapsed().as_secs(), fields.message)?;
        } else {
            let target = event.metadata().target();
            let module = target.strip_prefix("swarm_").unwrap_or(target).replace("::", "/");
            fields.fields.push(("module", module));
            let time = time::OffsetDateTime::now_utc()
                .format(&time::format_description::well_known::Rfc3339)
                .unwrap_or_default();
            write!(writer, "time={time:?} level={name} msg={}", Quoted(&fields.message))?;
        }
        fields.fields.sort_by_key(|(key, _)| *key);
        for (key, value) in &fields.fields {
            write!(writer, " {key}={}", Quoted(value))?;
        }
        writeln!(writer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_quoted_only_where_needed() {
        for (value, expected) in
            [("abc/d.e@f", "abc/d.e@f"), ("a b", "\"a b\""), ("", "\"\""), ("a\nb", "\"a\\nb\"")]
        {
            assert_eq!(Quoted(value).to_string(), expected);
        }
    }
}
