//! What a line of a conversation asks for: a message, or one of the commands in [`COMMANDS`].
//!
//! Invariant: a line that begins with `/` never becomes a message unless it begins with `//`. What a command does is
//! the conversation's business; this file only reads lines.

use std::path::PathBuf;

use dlx_ir::Error;

/// Every command: its name, what follows it, and what it does.
pub const COMMANDS: &[(&str, &str, &str)] = &[
    ("/help", "", "list the commands and settings"),
    ("/reset", "", "forget the conversation, keep the system message and the settings"),
    ("/system", "[TEXT]", "set the system message (\"\" removes it), or show it"),
    ("/set", "[NAME [VALUE]]", "change a setting (default: back to the model's own), or show those in use"),
    ("/stats", "", "statistics of the last answer"),
    ("/save", "FILE", "save the conversation and the settings as JSON"),
    ("/load", "FILE", "go on with a saved conversation and its settings"),
    ("/quit", "", "end; also /exit, /bye"),
];

/// How to send what looks like a command.
pub const ESCAPE: &str = "//text sends /text as a message";

/// What stands for no text.
pub const NOTHING: &str = "\"\"";

/// A line that was understood.
#[derive(Debug, PartialEq)]
pub enum Line {
    /// Nothing to do.
    Empty,
    /// To be answered by the model.
    Message(String),
    /// `/help`.
    Help,
    /// `/reset`.
    Reset,
    /// `/system`, with a text to set.
    System(Option<String>),
    /// `/set`, with a name to show or set.
    Set(Option<(String, Option<String>)>),
    /// `/stats`.
    Stats,
    /// `/save`.
    Save(PathBuf),
    /// `/load`.
    Load(PathBuf),
    /// `/quit`.
    Quit,
}

/// Understands a line.
///
/// # Errors
/// An unknown command, and a command with too much or too little behind it.
pub fn parse(line: &str) -> Result<Line, Error> {
    if line.trim().is_empty() {
        return Ok(Line::Empty);
    }
    let Some(rest) = line.strip_prefix('/') else { return Ok(Line::Message(line.to_owned())) };
    if rest.starts_with('/') {
        return Ok(Line::Message(rest.to_owned()));
    }
    let (name, rest) = split(line);
    let wrong = |what: String| Err(Error::new(name, what));
    let bare = |line: Line| if rest.is_empty() { Ok(line) } else { wrong("takes nothing behind it".into()) };
    let file = |line: fn(PathBuf) -> Line| match rest {
        "" => wrong("needs the name of a file".into()),
        _ => Ok(line(PathBuf::from(rest))),
    };
    let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    match name {
        "/help" => bare(Line::Help),
        "/reset" => bare(Line::Reset),
        "/system" => Ok(Line::System(some(rest))),
        "/set" => {
            let (name, value) = split(rest);
            Ok(Line::Set(some(name).map(|name| (name, some(value)))))
        }
        "/stats" => bare(Line::Stats),
        "/save" => file(Line::Save),
        "/load" => file(Line::Load),
        "/quit" | "/exit" | "/bye" => bare(Line::Quit),
        _ => {
            let known: Vec<_> = COMMANDS.iter().map(|(name, ..)| *name).collect();
            let shown: String = name.chars().take(40).collect();
            Err(Error::new("", format!("there is no command {shown}"))
                .help(format!("use one of {}; {ESCAPE}", known.join(", "))))
        }
    }
}

/// The first word, and what follows it without the space around it.
fn split(text: &str) -> (&str, &str) {
    let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    (word, rest.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_messages_or_commands() {
        let set = |name: &str, value: Option<&str>| Line::Set(Some((name.into(), value.map(Into::into))));
        for (line, expected) in [
            ("", Line::Empty),
            (" \t", Line::Empty),
            ("What is 1/2?", Line::Message("What is 1/2?".into())),
            (" /help", Line::Message(" /help".into())),
            ("//help", Line::Message("/help".into())),
            ("///", Line::Message("//".into())),
            ("/help", Line::Help),
            ("/reset ", Line::Reset),
            ("/system", Line::System(None)),
            ("/system  Be brief.\nBe kind. ", Line::System(Some("Be brief.\nBe kind.".into()))),
            ("/set", Line::Set(None)),
            ("/set top_k", set("top_k", None)),
            ("/set  stop  two words ", set("stop", Some("two words"))),
            ("/stats", Line::Stats),
            ("/save a file.json", Line::Save("a file.json".into())),
            ("/load x", Line::Load("x".into())),
            ("/quit", Line::Quit),
            ("/exit", Line::Quit),
            ("/bye", Line::Quit),
        ] {
            assert_eq!(parse(line), Ok(expected), "{line:?}");
        }
    }

    #[test]
    fn wrong_commands_say_what_is_right() {
        for line in ["/", "/hlep", "/HELP", "/usr/bin/env", "/ help"] {
            let error = parse(line).unwrap_err().to_string();
            assert!(error.contains("no command") && error.contains("//text sends /text"), "{error}");
            assert!(COMMANDS.iter().all(|(name, ..)| error.contains(name)), "{error}");
        }
        assert!(parse("/reset all").unwrap_err().message.contains("nothing behind"));
        assert!(parse("/save").unwrap_err().message.contains("file"));
        assert!(parse("/load ").unwrap_err().message.contains("file"));
    }

    #[test]
    fn every_command_of_the_table_is_understood() {
        for (name, argument, _) in COMMANDS {
            assert!(parse(&format!("{name} {}", if argument.is_empty() { "" } else { "x" })).is_ok(), "{name}");
        }
    }
}
