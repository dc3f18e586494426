//! The live view of a generation: stable text that only grows, and below its end the block being denoised, redrawn in
//! place.
//!
//! Invariant: on a terminal, what is on the screen after any call is the stable text followed by the last block; off a
//! terminal, exactly the stable text is written. Live rows are wrapped here, one column short of the edge, so their number
//! is known whatever the terminal does there. Control characters of a model's output never reach a terminal.

use std::io::{self, Write};

use unicode_width::UnicodeWidthChar;

/// What stands where nothing is decided.
pub(super) const MASKED: &str = "▒";

/// One position of the block being denoised.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cell<'a> {
    /// Not revealed yet.
    Masked,
    /// Revealed by the last step.
    Fresh(&'a str),
    /// Revealed earlier.
    Known(&'a str),
    /// Drafted, and not what the verifier says.
    Rejected(&'a str),
}

/// Size of a terminal in characters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Size {
    /// Columns.
    pub columns: usize,
    /// Rows.
    pub rows: usize,
}

/// Where generated text goes.
#[derive(Debug)]
pub struct Canvas<W: Write> {
    out: W,
    /// `None` off a terminal.
    size: Option<Size>,
    /// Column after the stable text.
    column: usize,
    /// Rows that the cursor is below the end of the stable text, while a block is shown.
    live: Option<usize>,
}

impl<W: Write> Canvas<W> {
    /// A canvas whose cursor is at the start of a line. `size` is `None` off a terminal.
    pub fn new(out: W, size: Option<Size>) -> Self {
        let size = size.map(|s| Size { columns: s.columns.max(8), rows: s.rows.max(2) });
        Canvas { out, size, column: 0, live: None }
    }

    /// Prints text that will not change any more, in place of the block shown last.
    ///
    /// # Errors
    /// When the output cannot be written.
    pub fn stable(&mut self, text: &str) -> io::Result<()> {
        let Some(size) = self.size else {
            self.out.write_all(text.as_bytes())?;
            return self.out.flush();
        };
        let mut paint = self.erase();
        for c in text.chars() {
            match c {
                '\n' => {
                    paint.push('\n');
                    self.column = 0;
                }
                '\t' => {
                    let spaces = (8 - self.column % 8).min(size.columns - self.column);
                    paint.extend(std::iter::repeat_n(' ', spaces));
                    self.column += spaces;
                }
                _ => {
                    let c = visible(c);
                    let width = c.width().unwrap_or(0);
                    self.column = if self.column + width > size.columns { width } else { self.column + width };
                    paint.push(c);
                }
            }
            if self.column == size.columns {
                // A full line leaves the cursor on its last column until something follows; this settles it below.
                paint.push_str(" \r");
                self.column = 0;
            }
        }
        self.write(&paint)
    }

    /// Shows the block being denoised in place of the one shown last. Off a terminal nothing happens.
    ///
    /// # Errors
    /// When the output cannot be written.
    pub fn draw(&mut self, cells: &[Cell<'_>]) -> io::Result<()> {
        let Some(size) = self.size else { return Ok(()) };
        let mut paint = self.erase();
        let (mut row, mut column) = (0, self.column);
        'cells: for cell in cells {
            let (style, text) = match cell {
                Cell::Masked => ("\x1b[2m", MASKED),
                Cell::Fresh(text) => ("\x1b[1m", *text),
                Cell::Known(text) => ("", *text),
                Cell::Rejected(text) => ("\x1b[2;9m", *text),
            };
            paint.push_str(style);
            for c in text.chars() {
                let c = shown(c);
                let width = c.width().unwrap_or(0);
                if column + width >= size.columns {
                    if row + 2 >= size.rows {
                        break 'cells;
                    }
                    paint.push_str("\r\n");
                    row += 1;
                    column = 0;
                }
                paint.push(c);
                column += width;
            }
            if !style.is_empty() {
                paint.push_str("\x1b[0m");
            }
        }
        paint.push_str("\x1b[0m");
        self.live = Some(row);
        self.write(&paint)
    }

    /// Removes the block, ends the last line, and gives the output back.
    ///
    /// # Errors
    /// When the output cannot be written.
    pub fn finish(mut self) -> io::Result<W> {
        let mut paint = self.erase();
        if self.size.is_none() || self.column > 0 {
            paint.push('\n');
        }
        self.write(&paint)?;
        Ok(self.out)
    }

    /// What brings the cursor back to the end of the stable text and clears everything after it.
    fn erase(&mut self) -> String {
        let mut paint = String::new();
        if let Some(rows) = self.live.take() {
            if rows > 0 {
                paint.push_str(&format!("\x1b[{rows}A"));
            }
            paint.push('\r');
            if self.column > 0 {
                paint.push_str(&format!("\x1b[{}C", self.column));
            }
            paint.push_str("\x1b[J");
        }
        paint
    }

    fn write(&mut self, paint: &str) -> io::Result<()> {
        self.out.write_all(paint.as_bytes())?;
        self.out.flush()
    }
}

/// A character as it stands in a line of its own.
pub(super) fn shown(c: char) -> char {
    match c {
        '\n' => '⏎',
        '\t' => '⇥',
        c => visible(c),
    }
}

/// A character that is safe to print: control characters and those that reorder text become `\u{fffd}`.
fn visible(c: char) -> char {
    let reorders = matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if c.is_control() || reorders { char::REPLACEMENT_CHARACTER } else { c }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A terminal that understands what a canvas sends: text, CR, LF, up, right, clear to the end, styles.
    struct Screen {
        columns: usize,
        lines: Vec<Vec<char>>,
        row: usize,
        column: usize,
    }

    impl Screen {
        fn show(columns: usize, bytes: &[u8]) -> Screen {
            let text = std::str::from_utf8(bytes).unwrap();
            let mut s = Screen { columns, lines: vec![Vec::new()], row: 0, column: 0 };
            let mut chars = text.chars();
            while let Some(c) = chars.next() {
                match c {
                    '\r' => s.column = 0,
                    '\n' => s.line_feed(),
                    '\x1b' => {
                        assert_eq!(chars.next(), Some('['));
                        let mut number = String::new();
                        let command = loop {
                            match chars.next().unwrap() {
                                c if c.is_ascii_alphabetic() => break c,
                                c => number.push(c),
                            }
                        };
                        match command {
                            'A' => s.row -= number.parse::<usize>().unwrap(),
                            'C' => s.column += number.parse::<usize>().unwrap(),
                            'J' => {
                                s.lines.truncate(s.row + 1);
                                s.lines[s.row].truncate(s.column);
                            }
                            'm' => {}
                            other => panic!("unknown command {other}"),
                        }
                    }
                    c => s.print(c),
                }
            }
            s
        }

        fn line_feed(&mut self) {
            self.column = 0;
            self.row += 1;
            if self.row == self.lines.len() {
                self.lines.push(Vec::new());
            }
        }

        fn print(&mut self, c: char) {
            assert!(!c.is_control(), "{c:?}");
            let width = c.width().unwrap_or(0);
            if self.column + width > self.columns {
                self.line_feed();
            }
            let line = &mut self.lines[self.row];
            line.resize(line.len().max(self.column + width), ' ');
            for i in 0..width {
                line[self.column + i] = if i == 0 { c } else { '\0' };
            }
            self.column += width;
        }

        fn text(&self) -> Vec<String> {
            let line = |l: &Vec<char>| l.iter().filter(|c| **c != '\0').collect::<String>().trim_end().to_owned();
            self.lines.iter().map(line).collect()
        }
    }

    fn canvas(columns: usize) -> Canvas<Vec<u8>> {
        Canvas::new(Vec::new(), Some(Size { columns, rows: 24 }))
    }

    #[test]
    fn a_block_is_redrawn_in_place_and_replaced_by_text() {
        let mut c = canvas(20);
        c.stable("The capital").unwrap();
        c.draw(&[Cell::Masked; 12]).unwrap();
        assert_eq!(Screen::show(20, &c.out).text(), ["The capital▒▒▒▒▒▒▒▒", "▒▒▒▒"]);
        c.draw(&[Cell::Fresh(" of"), Cell::Masked, Cell::Known("\n"), Cell::Masked]).unwrap();
        assert_eq!(Screen::show(20, &c.out).text(), ["The capital of▒⏎▒"]);
        c.stable(" of France\nis").unwrap();
        c.draw(&[Cell::Masked]).unwrap();
        assert_eq!(Screen::show(20, &c.out).text(), ["The capital of Franc", "e", "is▒"]);
        let out = c.finish().unwrap();
        assert_eq!(Screen::show(20, &out).text(), ["The capital of Franc", "e", "is", ""]);
    }

    #[test]
    fn off_a_terminal_only_stable_text_is_written() {
        let mut c = Canvas::new(Vec::new(), None);
        c.draw(&[Cell::Masked]).unwrap();
        c.stable("a\tb\x1b[2J").unwrap();
        c.draw(&[Cell::Known("x")]).unwrap();
        assert_eq!(c.finish().unwrap(), b"a\tb\x1b[2J\n");
    }

    #[test]
    fn control_characters_do_not_reach_a_terminal() {
        let mut c = canvas(40);
        c.stable("a\x1b[2Jb\r\u{202e}c\u{7}").unwrap();
        c.draw(&[Cell::Known("\x1b]0;title\x07")]).unwrap();
        assert_eq!(Screen::show(40, &c.out).text(), ["a\u{fffd}[2Jb\u{fffd}\u{fffd}c\u{fffd}\u{fffd}]0;title\u{fffd}"]);
    }

    #[test]
    fn a_block_never_outgrows_the_screen() {
        let mut c = Canvas::new(Vec::new(), Some(Size { columns: 10, rows: 4 }));
        c.stable("x").unwrap();
        c.draw(&[Cell::Masked; 500]).unwrap();
        assert_eq!(Screen::show(10, &c.out).text().len(), 3);
        c.stable("y").unwrap();
        assert_eq!(Screen::show(10, &c.out).text(), ["xy"]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_screen_is_the_stable_text_then_the_block(
            columns in 8usize..24,
            steps in proptest::collection::vec((any::<bool>(), "[a-c 世é\n\t]{0,30}"), 0..12),
        ) {
            let mut live = canvas(columns);
            let mut plain = canvas(columns);
            let mut block = "";
            for (is_stable, text) in &steps {
                if *is_stable {
                    live.stable(text).unwrap();
                    plain.stable(text).unwrap();
                    block = "";
                } else {
                    live.draw(&[Cell::Known("to be erased"), Cell::Masked]).unwrap();
                    live.draw(&[Cell::Known(text)]).unwrap();
                    block = text;
                }
            }
            plain.draw(&[Cell::Known(block)]).unwrap();
            prop_assert_eq!(Screen::show(columns, &live.out).text(), Screen::show(columns, &plain.out).text());
        }
    }
}
