//! Rules that do not hold.

/// A rule, and how it was broken.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Broken {
    /// Its name: what is broken again in a shorter history must be the same.
    pub(crate) rule: &'static str,
    pub(crate) text: String,
}

pub(crate) type Held = Result<(), Broken>;

/// The rule of whatever panics.
pub(crate) const PANIC: &str = "nothing panics";

pub(crate) fn broken<T>(rule: &'static str, text: impl Into<String>) -> Result<T, Broken> {
    Err(Broken { rule, text: text.into() })
}

impl Broken {
    /// The same went wrong. Of panics, the same but for names and numbers.
    pub(crate) fn is_like(&self, other: &Broken) -> bool {
        let words = |text: &str| -> String { text.chars().filter(|c| !c.is_ascii_digit()).collect() };
        self.rule == other.rule && (self.rule != PANIC || words(&self.text) == words(&other.text))
    }
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.rule, self.text)
    }
}
