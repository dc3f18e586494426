//! Reading a recording, which anybody may have edited.
//!
//! Invariant: memory follows the file's length, every error names the file and the line, and what is returned is complete.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde::Deserialize;

use super::{Decided, End, FORMAT, Fed, Head, Line, Step, Trace, TraceError, VERSION};

/// Longest line in bytes: a prompt, or a block with its rows, far beyond any cache.
const MAX_LINE: u64 = 64 << 20;

/// What the first line says before anything else of it is read.
#[derive(Deserialize)]
struct Peek {
    format: String,
    version: u64,
}

/// A file, line by line.
struct Lines<'p> {
    path: &'p Path,
    file: BufReader<File>,
    /// Number of the line read last.
    number: usize,
}

impl Trace {
    /// Reads a recording.
    ///
    /// # Errors
    /// A file that cannot be read, another format or version, a line that is malformed or contradicts those before it, or a
    /// recording without its end.
    pub fn read(path: &Path) -> Result<Self, TraceError> {
        let failed = |source| TraceError::Read { path: path.into(), source };
        // Opening a pipe would wait for a writer.
        if !std::fs::metadata(path).map_err(failed)?.is_file() {
            return Err(failed(std::io::Error::other("is no file")));
        }
        let file = BufReader::new(File::open(path).map_err(failed)?);
        let mut lines = Lines { path, file, number: 0 };
        let head = lines.head()?;
        let mut steps: Vec<Step> = Vec::new();
        // Position after those that are known or belong to a block.
        let mut known = head.prompt.len();
        while let Some(text) = lines.next()? {
            let line: Line = serde_json::from_str(&text)
                .map_err(|e| lines.wrong(format!("is no record of a trace: {e}; record it again")))?;
            match line {
                Line::Pass(pass) => {
                    check_pass(&pass).map_err(|e| lines.wrong(e))?;
                    steps.push(Step { pass, decision: None, line: lines.number });
                }
                Line::Decision(decision) => {
                    check_decision(&decision, known).map_err(|e| lines.wrong(e))?;
                    known = known.max(decision.block[1]);
                    match steps.last_mut().map(|step| &mut step.decision) {
                        Some(of @ None) => *of = Some(decision),
                        _ => return Err(lines.wrong("a decision that no pass stands before; record it again".into())),
                    }
                }
                Line::End(end) => {
                    check_end(&end, &head).map_err(|e| lines.wrong(e))?;
                    return match lines.next()? {
                        None => Ok(Trace { head, steps, end }),
                        Some(_) => Err(lines.wrong("there is more after the end; record it again".into())),
                    };
                }
            }
        }
        lines.number += 1;
        Err(lines.wrong("the `end` record is missing: the file was cut; copy or record it again".into()))
    }
}

impl Lines<'_> {
    fn head(&mut self) -> Result<Head, TraceError> {
        let text = self.next()?.unwrap_or_default();
        self.number = 1;
        let none = format!("is no {FORMAT} head; give a file made by `dlxc run --trace FILE`");
        let peek: Peek = serde_json::from_str(&text).map_err(|e| self.wrong(format!("{none} ({e})")))?;
        if peek.format != FORMAT {
            return Err(self.wrong(none));
        }
        if peek.version != u64::from(VERSION) {
            let found = peek.version;
            let what = format!(
                "trace format {found}, this build reads {VERSION}; record it again, or use the matching version"
            );
            return Err(self.wrong(what));
        }
        serde_json::from_str(&text).map_err(|e| self.wrong(format!("the head cannot be read: {e}; record it again")))
    }

    /// The next line without its line feed; `None` at the end.
    fn next(&mut self) -> Result<Option<String>, TraceError> {
        let mut bytes = Vec::new();
        let read = (&mut self.file).take(MAX_LINE + 1).read_until(b'\n', &mut bytes);
        read.map_err(|source| TraceError::Read { path: self.path.into(), source })?;
        if bytes.is_empty() {
            return Ok(None);
        }
        self.number += 1;
        if bytes.len() as u64 > MAX_LINE {
            return Err(self.wrong(format!("is longer than {MAX_LINE} bytes, which no record is")));
        }
        if bytes.pop() != Some(b'\n') {
            return Err(self.wrong("ends in the middle: the file was cut; copy or record it again".into()));
        }
        String::from_utf8(bytes).map(Some).map_err(|e| self.wrong(format!("is not UTF-8: {e}; record it again")))
    }

    fn wrong(&self, what: String) -> TraceError {
        TraceError::Line { path: self.path.into(), line: self.number, what }
    }
}

fn check_pass(pass: &Fed) -> Result<(), String> {
    let end = pass.start.checked_add(pass.rows).filter(|_| pass.rows > 0);
    if end.is_none() || !(1..=2).contains(&pass.spans) || pass.looks.iter().any(|row| *row >= pass.rows) {
        return Err("a pass that no sequence asks for: its rows or positions make no sense; record it again".into());
    }
    Ok(())
}

fn check_decision(decision: &Decided, known: usize) -> Result<(), String> {
    let [start, end] = decision.block;
    let length = decision.canvas.len();
    if start > known || end.checked_sub(start) != Some(length) {
        return Err(format!("a block {start}..{end} with a canvas of {length} at {known} positions; record it again"));
    }
    let mut positions = decision.rows.iter().map(|row| row.position).chain(decision.revealed.iter().map(|r| r.0));
    if let Some(position) = positions.find(|position| !(start..end).contains(position)) {
        return Err(format!("position {position} is outside the block {start}..{end}; record it again"));
    }
    Ok(())
}

fn check_end(end: &End, head: &Head) -> Result<(), String> {
    if end.held > head.prompt.len() {
        return Err(format!("{} of {} prompt tokens were held; record it again", end.held, head.prompt.len()));
    }
    Ok(())
}
