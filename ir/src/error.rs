//! The compile-side error: where, what, and what to do about it.

use std::fmt;

/// An error of the compile side. `place` names the file, tensor or node *text*; ids never appear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// File, tensor, or text of the node that is at fault.
    pub place: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it; empty when the message says it all.
    pub help: String,
}

impl Error {
    /// An error at `place`.
    pub fn new(place: impl Into<String>, message: impl Into<String>) -> Self {
        Error { place: place.into(), message: message.into(), help: String::new() }
    }

    /// Adds what to do.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = help.into();
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)?;
        if self.help.is_empty() { Ok(()) } else { write!(f, "\nhelp: {}", self.help) }
    }
}

impl std::error::Error for Error {}
