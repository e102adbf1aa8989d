//! The raft library logs through slog; this passes it on to tracing.

use std::fmt::Write as _;

use slog::{Drain, KV, Level, Logger, OwnedKVList, Record, Serializer};

struct ToTracing;

struct Fields(String);

impl Serializer for Fields {
    fn emit_arguments(&mut self, key: slog::Key, value: &std::fmt::Arguments<'_>) -> slog::Result {
        write!(self.0, ", {key}: {value}").map_err(|_| slog::Error::Other)
    }
}

impl Drain for ToTracing {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), slog::Never> {
        macro_rules! forward {
            ($level:ident) => {
                if tracing::enabled!(target: "raft", tracing::Level::$level) {
                    let mut fields = Fields(String::new());
                    let _ = record.kv().serialize(record, &mut fields);
                    let _ = values.serialize(record, &mut fields);
                    tracing::event!(target: "raft", tracing::Level::$level, "{}{}", record.msg(), fields.0);
                }
            };
        }
        // The library's info is about every election and membership change, in its own words; what an operator
        // should know of them is logged by the loop.
        match record.level() {
            Level::Critical | Level::Error => forward!(ERROR),
            Level::Warning => forward!(WARN),
            Level::Info => forward!(DEBUG),
            Level::Debug | Level::Trace => forward!(TRACE),
        }
        Ok(())
    }
}

pub(crate) fn logger() -> Logger {
    Logger::root(ToTracing, slog::o!())
}
