//! Tokens of the text format, with the line and column of each.

use crate::error::Error;
use crate::print::plain_name_char;

/// A token. Words also cover numbers, attribute values and type names.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Token<'t> {
    Word(&'t str),
    /// `%name`
    Local(String),
    /// `@name`
    Global(String),
    Punct(char),
    Arrow,
    End,
    /// Text that is no token, with what is wrong with it.
    Bad(String),
}

/// A one-token look-ahead reader.
pub(crate) struct Lexer<'t> {
    text: &'t str,
    /// Byte offset behind the current token.
    at: usize,
    /// Byte offset of the last token taken, where errors point.
    last: usize,
    /// Byte offset of the current token.
    start: usize,
    current: Token<'t>,
}

impl<'t> Lexer<'t> {
    pub(crate) fn new(text: &'t str) -> Self {
        let mut lex = Lexer { text, at: 0, last: 0, start: 0, current: Token::End };
        lex.take();
        lex
    }

    pub(crate) fn peek(&self) -> &Token<'t> {
        &self.current
    }

    /// An error at the last token taken.
    pub(crate) fn error(&self, message: impl Into<String>) -> Error {
        self.error_at(self.last, message)
    }

    /// Offset of the last token taken, for an error that shows later.
    pub(crate) fn last(&self) -> usize {
        self.last
    }

    pub(crate) fn error_at(&self, offset: usize, message: impl Into<String>) -> Error {
        let before = &self.text[..offset.min(self.text.len())];
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|&c| c != '\n').count() + 1;
        Error::new(format!("line {line}, column {column}"), message)
    }

    fn unexpected(&self, wanted: &str) -> Error {
        let found = match &self.current {
            Token::Word(w) => format!("`{w}`"),
            Token::Local(n) => format!("`%{n}`"),
            Token::Global(n) => format!("`@{n}`"),
            Token::Punct(c) => format!("`{c}`"),
            Token::Arrow => "`->`".into(),
            Token::End => "the end of the text".into(),
            Token::Bad(message) => return self.error_at(self.start, message),
        };
        self.error_at(self.start, format!("expected {wanted}, found {found}"))
    }

    fn take(&mut self) -> Token<'t> {
        self.last = self.start;
        let next = self.next_token().unwrap_or_else(Token::Bad);
        std::mem::replace(&mut self.current, next)
    }

    pub(crate) fn eat(&mut self, c: char) -> bool {
        let found = self.current == Token::Punct(c);
        if found {
            self.take();
        }
        found
    }

    pub(crate) fn punct(&mut self, c: char) -> Result<(), Error> {
        if self.eat(c) { Ok(()) } else { Err(self.unexpected(&format!("`{c}`"))) }
    }

    pub(crate) fn arrow(&mut self) -> Result<(), Error> {
        if self.current == Token::Arrow {
            self.take();
            Ok(())
        } else {
            Err(self.unexpected("`->`"))
        }
    }

    pub(crate) fn keyword(&mut self, word: &str) -> Result<(), Error> {
        if self.current == Token::Word(word) {
            self.take();
            Ok(())
        } else {
            Err(self.unexpected(&format!("`{word}`")))
        }
    }

    pub(crate) fn word(&mut self, wanted: &str) -> Result<String, Error> {
        let Token::Word(word) = self.current else { return Err(self.unexpected(wanted)) };
        self.take();
        Ok(word.to_owned())
    }

    /// Attribute text: a word, possibly with `:`-separated parts.
    pub(crate) fn attr_text(&mut self) -> Result<String, Error> {
        let mut text = self.word("an attribute value")?;
        while self.eat(':') {
            text.push(':');
            text.push_str(&self.word("an attribute value")?);
        }
        Ok(text)
    }

    pub(crate) fn local(&mut self, wanted: &str) -> Result<String, Error> {
        let Token::Local(name) = &self.current else { return Err(self.unexpected(wanted)) };
        let name = name.clone();
        self.take();
        Ok(name)
    }

    pub(crate) fn global(&mut self, wanted: &str) -> Result<String, Error> {
        let Token::Global(name) = &self.current else { return Err(self.unexpected(wanted)) };
        let name = name.clone();
        self.take();
        Ok(name)
    }

    fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }

    fn next_token(&mut self) -> Result<Token<'t>, String> {
        loop {
            let trimmed = self.rest().trim_start();
            self.at = self.text.len() - trimmed.len();
            if !trimmed.starts_with(';') {
                break;
            }
            self.at += trimmed.find('\n').unwrap_or(trimmed.len());
        }
        self.start = self.at;
        let rest = self.rest();
        let Some(c) = rest.chars().next() else { return Ok(Token::End) };
        match c {
            '%' | '@' => {
                self.at += 1;
                let name = self.name()?;
                Ok(if c == '%' { Token::Local(name) } else { Token::Global(name) })
            }
            '-' if rest.starts_with("->") => {
                self.at += 2;
                Ok(Token::Arrow)
            }
            '{' | '}' | '(' | ')' | '[' | ']' | ':' | ',' | '=' => {
                self.at += 1;
                Ok(Token::Punct(c))
            }
            c if plain_name_char(c) => Ok(Token::Word(self.plain())),
            c => Err(format!("unexpected character `{}`", c.escape_debug())),
        }
    }

    fn plain(&mut self) -> &'t str {
        let rest = self.rest();
        let len = rest.find(|c| !plain_name_char(c)).unwrap_or(rest.len());
        self.at += len;
        &rest[..len]
    }

    fn name(&mut self) -> Result<String, String> {
        if !self.rest().starts_with('"') {
            return match self.plain() {
                "" => Err("a name is missing after the sigil".into()),
                name => Ok(name.to_owned()),
            };
        }
        let mut name = String::new();
        let mut chars = self.rest().char_indices().skip(1);
        while let Some((i, c)) = chars.next() {
            match c {
                '"' => {
                    self.at += i + 1;
                    return Ok(name);
                }
                '\\' => match chars.next() {
                    Some((_, 'n')) => name.push('\n'),
                    Some((_, c @ ('"' | '\\'))) => name.push(c),
                    _ => return Err("a bad escape in a quoted name".into()),
                },
                c => name.push(c),
            }
        }
        Err("a quoted name without its closing quote".into())
    }
}
