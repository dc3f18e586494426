//! Tokens of the text format, with the line and column of each.

use crate::error::Error;
use crate::name::plain_name_char;
use std::fmt::{self, Write};

/// Most elements of a list in an attribute.
const MAX_LIST: usize = 4096;

/// The canonical text of a list.
pub(crate) fn list_text<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    let mut text = String::from("[");
    for (i, item) in items.into_iter().enumerate() {
        let _ = write!(text, "{}{item}", if i == 0 { "" } else { ", " });
    }
    text.push(']');
    text
}

/// A token. Words also cover numbers, attribute values and type names.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Token<'t> {
    Word(&'t str),
    /// `%name`
    Local(String),
    /// `@name`
    Global(String),
    /// `"text"`
    Text(String),
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
            Token::Text(_) => "a quoted text".into(),
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

    /// The words of `[a, b, …]`, at most so many.
    pub(crate) fn list(&mut self, wanted: &str, limit: usize) -> Result<Vec<&'t str>, Error> {
        self.punct('[')?;
        let mut items = Vec::new();
        while !self.eat(']') {
            let Token::Word(word) = self.current else { return Err(self.unexpected(wanted)) };
            self.take();
            if items.len() == limit {
                return Err(self.error(format!("a list has at most {limit} elements")));
            }
            items.push(word);
            if !self.eat(',') && self.current != Token::Punct(']') {
                return Err(self.unexpected("`,` or `]`"));
            }
        }
        Ok(items)
    }

    /// Attribute text: a list, or a word, possibly with `:`-separated parts. Lists come out as they are printed.
    pub(crate) fn attr_text(&mut self) -> Result<String, Error> {
        if self.current == Token::Punct('[') {
            return Ok(list_text(self.list("an element of the list", MAX_LIST)?));
        }
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

    pub(crate) fn text(&mut self, wanted: &str) -> Result<String, Error> {
        let Token::Text(text) = &self.current else { return Err(self.unexpected(wanted)) };
        let text = text.clone();
        self.take();
        Ok(text)
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
            '"' => self.name().map(Token::Text),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn attr(text: &str) -> Result<String, String> {
        Lexer::new(text).attr_text().map_err(|e| e.to_string())
    }

    #[test]
    fn lists_come_out_as_they_are_printed() {
        for (text, canonical) in [("[]", "[]"), ("[ 1 ,-2,\n3e-6,]", "[1, -2, 3e-6]"), ("[0, 2, 1]", "[0, 2, 1]")] {
            assert_eq!(attr(text).as_deref(), Ok(canonical));
            assert_eq!(attr(canonical).as_deref(), Ok(canonical));
        }
        assert_eq!(attr("a:b:c").as_deref(), Ok("a:b:c"));
    }

    #[test]
    fn lists_have_an_end_and_a_bound() {
        for (text, message) in [
            ("[1 2]", "line 1, column 4: expected `,` or `]`, found `2`"),
            ("[1, [2]]", "line 1, column 5: expected an element of the list, found `[`"),
            ("[1, ", "expected an element of the list, found the end of the text"),
            ("[,]", "expected an element of the list, found `,`"),
        ] {
            let error = attr(text).unwrap_err();
            assert!(error.contains(message), "{text}: {error}");
        }
        let list = |n: usize| list_text(vec![0; n]);
        assert!(attr(&list(MAX_LIST)).is_ok());
        assert!(attr(&list(MAX_LIST + 1)).unwrap_err().contains("at most 4096 elements"));
    }
}
