//! The lines of a conversation: from an editor with a history on a terminal, and plainly from anything else.
//!
//! Invariant: a turn is at most [`MAX_PROMPT`] bytes of text, and one that is not is refused alone. A line that ends in
//! `\` goes on in the next one. The history is a file that its owner alone can read, of at most [`HISTORY`] entries.

use std::io::{BufRead, IsTerminal, Read};
use std::path::PathBuf;

use dlx_ir::Error;
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Config, Context, Editor, Helper};

use super::super::run::MAX_PROMPT;
use super::super::{Failure, terminal};
use super::commands::COMMANDS;
use crate::cache;

/// Most entries of the history.
const HISTORY: usize = 1000;
/// Longest turn that the history keeps.
const LONGEST_ENTRY: usize = 4096;
/// Longest history file that is read: as many bytes as the entries can have.
const LONGEST_FILE: u64 = (HISTORY * (2 * LONGEST_ENTRY + 1)) as u64;

/// Where turns come from.
pub enum Input {
    /// Standard input, read line by line; with a prompt if it is a terminal.
    Lines,
    /// A terminal.
    Editor(Box<Editor<Commands, FileHistory>>, Option<PathBuf>),
}

impl Input {
    /// The editor if both standard input and output are a terminal that can move its cursor.
    pub fn open(settings: Vec<String>) -> Self {
        if !std::io::stdin().is_terminal() || terminal::stdout_size().is_none() {
            return Self::Lines;
        }
        let config = Config::builder().max_history_size(HISTORY).map(|builder| builder.build());
        let Ok(mut editor) = config.and_then(Editor::with_config) else { return Self::Lines };
        editor.set_helper(Some(Commands { settings }));
        let history = history().and_then(|path| {
            let length = path.metadata().map_or(0, |meta| meta.len());
            if length > LONGEST_FILE {
                return Err(Error::new(path.display(), format!("is longer than {LONGEST_FILE} bytes")));
            }
            if length > 0 {
                editor.load_history(&path).map_err(|e| Error::new(path.display(), e.to_string()))?;
            }
            Ok(path)
        });
        let history = history.map_err(|e| terminal::note(&format!("note: there is no history of input: {e}"))).ok();
        Self::Editor(Box::new(editor), history)
    }

    /// Whether a person sees the prompt, so that Ctrl-C can mean one answer.
    pub fn is_editor(&self) -> bool {
        matches!(self, Self::Editor(..))
    }

    /// The next turn, or why it is none; nothing at the end.
    ///
    /// # Errors
    /// When the input fails, and on Ctrl-C.
    pub fn turn(&mut self) -> Result<Option<Result<String, Error>>, Failure> {
        let Self::Editor(editor, history) = self else {
            let input = std::io::stdin();
            if input.is_terminal() {
                terminal::prompt("> ");
            }
            return Ok(read_turn(&mut input.lock())?);
        };
        let mut interrupted = false;
        let line = loop {
            match editor.readline("> ") {
                Ok(line) => break line,
                Err(ReadlineError::Eof) => return Ok(None),
                Err(ReadlineError::Interrupted) if interrupted => return Err(Failure::Interrupted),
                Err(ReadlineError::Interrupted) => {
                    interrupted = true;
                    terminal::note("Ctrl-C again, Ctrl-D or /quit ends");
                }
                Err(ReadlineError::Io(e)) if e.kind() == std::io::ErrorKind::InvalidData => {
                    return Ok(Some(Err(no_text(&e))));
                }
                Err(e) => return Err(Error::new("standard input", e.to_string()).into()),
            }
        };
        if line.len() <= LONGEST_ENTRY {
            let kept = editor.add_history_entry(&line).and_then(|_| match history {
                Some(path) => editor.append_history(path),
                None => Ok(()),
            });
            if let Err(e) = kept {
                terminal::note(&format!("note: the history of input ends here: {e}"));
                *history = None;
            }
        }
        Ok(Some(if line.len() as u64 > MAX_PROMPT { Err(too_long()) } else { Ok(line.replace("\\\n", "\n")) }))
    }
}

/// Where the history is; its directory exists afterwards.
fn history() -> Result<PathBuf, Error> {
    let dir = cache::own().ok_or_else(|| Error::new("", "there is no home directory").help("set DLXC_CACHE"))?;
    std::fs::create_dir_all(&dir).map_err(|e| Error::new(dir.display(), format!("cannot be made: {e}")))?;
    Ok(dir.join("chat_history"))
}

/// Completes the names of commands and settings, and asks for another line after a `\`.
pub struct Commands {
    settings: Vec<String>,
}

impl Commands {
    /// Where the name before the cursor begins, and the names that it may become.
    fn candidates(&self, before: &str) -> (usize, Vec<String>) {
        let (start, names): (_, Vec<&str>) = match before.strip_prefix("/set ") {
            Some(_) => ("/set ".len(), self.settings.iter().map(String::as_str).collect()),
            None => (0, COMMANDS.iter().map(|(name, ..)| *name).collect()),
        };
        let typed = &before[start..];
        let fits = |name: &&str| name.starts_with(typed) && before.starts_with('/');
        (start, names.into_iter().filter(fits).map(|name| format!("{name} ")).collect())
    }
}

impl Completer for Commands {
    type Candidate = String;

    fn complete(&self, line: &str, pos: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        Ok(self.candidates(line.get(..pos).unwrap_or_default()))
    }
}

impl Validator for Commands {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let more = context.input().ends_with('\\');
        Ok(if more { ValidationResult::Incomplete } else { ValidationResult::Valid(None) })
    }
}

impl Hinter for Commands {
    type Hint = String;
}
impl Highlighter for Commands {}
impl Helper for Commands {}

fn too_long() -> Error {
    Error::new("standard input", format!("a turn is longer than {MAX_PROMPT} bytes")).help("send shorter turns")
}

fn no_text(e: &dyn std::fmt::Display) -> Error {
    Error::new("standard input", format!("a line is not text: {e}")).help("send UTF-8 text")
}

/// The next turn of a conversation, or why it is none; nothing at the end of the input.
fn read_turn(input: &mut impl BufRead) -> Result<Option<Result<String, Error>>, Error> {
    let mut turn = String::new();
    loop {
        match read_line(input, MAX_PROMPT - turn.len() as u64)? {
            None if turn.is_empty() => return Ok(None),
            None => return Ok(Some(Ok(turn))),
            Some(Err(refused)) => return Ok(Some(Err(refused))),
            Some(Ok(line)) => match line.strip_suffix('\\') {
                Some(line) => turn = format!("{turn}{line}\n"),
                None => return Ok(Some(Ok(turn + &line))),
            },
        }
    }
}

/// The next line of at most `most` bytes without its end.
fn read_line(input: &mut impl BufRead, most: u64) -> Result<Option<Result<String, Error>>, Error> {
    let failed = |e: std::io::Error| Error::new("standard input", e.to_string());
    let mut line = Vec::new();
    let read = input.by_ref().take(most.saturating_add(1)).read_until(b'\n', &mut line).map_err(failed)?;
    if read == 0 {
        return Ok(None);
    }
    if line.len() as u64 > most {
        if !line.ends_with(b"\n") {
            input.skip_until(b'\n').map_err(failed)?;
        }
        return Ok(Some(Err(too_long())));
    }
    Ok(Some(match String::from_utf8(line) {
        Ok(line) => Ok(line.trim_end_matches(['\r', '\n']).to_owned()),
        Err(e) => Err(no_text(&e.utf8_error())),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(bytes: &[u8]) -> Vec<Result<String, String>> {
        let mut input = std::io::Cursor::new(bytes);
        std::iter::from_fn(|| read_turn(&mut input).unwrap()).map(|turn| turn.map_err(|e| e.to_string())).collect()
    }

    #[test]
    fn turns_that_are_no_text_are_refused_one_by_one() {
        let long = "x".repeat(usize::try_from(MAX_PROMPT).unwrap() + 1);
        let turns = turns(&[b"a\r\n\xff\n", long.as_bytes(), b"\n\nb"].concat());
        assert_eq!((&turns[0], &turns[3..]), (&Ok("a".into()), &[Ok(String::new()), Ok("b".into())][..]));
        assert!(turns[1].as_ref().unwrap_err().contains("UTF-8"));
        assert!(turns[2].as_ref().unwrap_err().contains("longer than"));
    }

    #[test]
    fn a_line_that_ends_in_a_backslash_goes_on() {
        let texts = ["a\nb\nc", "d", "e\n"].map(|text| Ok(text.to_owned()));
        assert_eq!(turns(b"a\\\nb\\\r\nc\nd\ne\\\n"), texts);
        let half = "x".repeat(usize::try_from(MAX_PROMPT).unwrap() / 2);
        let turns = turns(format!("{half}\\\n{half}\\\n{half}\nb").as_bytes());
        assert!(turns[0].as_ref().unwrap_err().contains("longer than"), "all lines together are bounded");
        assert_eq!(turns.last(), Some(&Ok("b".into())));
    }

    #[test]
    fn names_are_completed() {
        let commands = Commands { settings: vec!["top_k".into(), "top_p".into(), "seed".into()] };
        assert_eq!(commands.candidates("/sa"), (0, vec!["/save ".into()]));
        assert_eq!(commands.candidates("/set top"), (5, vec!["top_k ".into(), "top_p ".into()]));
        assert_eq!(commands.candidates("/set seed 1").1.len(), 0);
        assert_eq!(commands.candidates("hel").1.len(), 0);
        assert_eq!(commands.candidates("").1.len(), 0);
    }
}
