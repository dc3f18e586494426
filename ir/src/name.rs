//! Names in the text format: which characters need quotes, and the quoting.
//!
//! The lexer reads what is written here. Imports nothing, so that everything that prints a name may use it.

/// Whether a character may stand in a name without quotes.
pub(crate) fn plain_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '/')
}

/// A name with its sigil, quoted when it has other characters.
pub(crate) fn name(sigil: char, text: &str) -> String {
    if !text.is_empty() && text.chars().all(plain_name_char) {
        return format!("{sigil}{text}");
    }
    format!("{sigil}{}", quoted(text))
}

/// A text in quotes.
pub(crate) fn quoted(text: &str) -> String {
    let mut s = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => s.extend(['\\', c]),
            '\n' => s.push_str("\\n"),
            _ => s.push(c),
        }
    }
    s.push('"');
    s
}
