//! The one error type of the compile side.
//!
//! Invariant: an error names a place that the user can find (a file, a source tensor, a node's text) and, wherever there
//! is something to do, says what. It deliberately has no kinds: nothing on the compile side branches on an error.

use std::fmt;

/// What stands before the help in an error's text, once.
const HELP: &str = "\nhelp: ";

/// What went wrong, where, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// File, source tensor or node text.
    pub place: String,
    /// What was found and what was expected.
    pub message: String,
    /// What to do; empty when the message already says it.
    pub help: String,
}

impl Error {
    /// An error at `place`, without help, unless `message` is the text of another error, whose help this one keeps.
    pub fn new(place: impl fmt::Display, message: impl Into<String>) -> Self {
        let mut message: String = message.into();
        let help =
            message.find(HELP).map_or_else(String::new, |at| message.split_off(at)[HELP.len()..].replace(HELP, "; "));
        Error { place: place.to_string(), message, help }
    }

    /// The same error, saying what to do.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = help.into();
        self
    }

    /// The first of several errors, saying how many more there are.
    #[must_use]
    pub fn first_of(errors: Vec<Error>) -> Self {
        let more = errors.len().saturating_sub(1);
        let mut first = errors.into_iter().next().unwrap_or_else(|| Error::new("module", "is not valid"));
        if more > 0 {
            first.message.push_str(&format!(" (and {more} more)"));
        }
        first
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.place.is_empty() {
            write!(f, "{}: ", self.place)?;
        }
        write!(f, "{}", self.message)?;
        if !self.help.is_empty() {
            write!(f, "{HELP}{}", self.help)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::Error;

    #[test]
    fn displays_place_message_and_help() {
        let e = Error::new("config.json", "`hidden_size` is missing");
        assert_eq!(e.to_string(), "config.json: `hidden_size` is missing");
        assert_eq!(e.help("add it").to_string(), "config.json: `hidden_size` is missing\nhelp: add it");
        assert_eq!(Error::new("", "no input").to_string(), "no input");
    }

    #[test]
    fn help_is_said_once() {
        let e = Error::new("tensor", "is short").help("export it again");
        let outer = Error::new("node", e.to_string());
        assert_eq!(outer.to_string(), "node: tensor: is short\nhelp: export it again");
        assert_eq!(outer.help("look").to_string(), "node: tensor: is short\nhelp: look");
    }

    #[test]
    fn several_errors_are_counted() {
        let errors = |n: usize| Error::first_of((0..n).map(|i| Error::new(i, "is bad")).collect()).to_string();
        assert_eq!((errors(1), errors(3)), ("0: is bad".into(), "0: is bad (and 2 more)".into()));
    }
}
