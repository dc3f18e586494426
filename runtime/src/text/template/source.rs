//! What is done to a template's text before it is parsed: line ends, and the tag that transformers adds to Jinja.
//!
//! Invariant: lines keep their numbers, and nothing inside a raw block, a comment or a string changes but line ends.

/// Jinja reads every line end as a line feed.
pub(super) fn line_feeds(source: &str) -> String {
    source.replace("\r\n", "\n").replace('\r', "\n")
}

/// `{% generation %}` marks what a model is trained on and renders its body: a scope, with the tag's own whitespace
/// control. Raw blocks, comments and strings stay as they are.
pub(super) fn generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find('{') {
        let (before, tail) = rest.split_at(at);
        out.push_str(before);
        let len = match tail.as_bytes().get(1) {
            Some(b'#') => tail.find("#}").map_or(tail.len(), |end| end + 2),
            Some(b'{') => construct(tail, "}}"),
            Some(b'%') => {
                let len = construct(tail, "%}");
                let inner = tail[2..len].strip_suffix("%}").unwrap_or_default();
                let (open, close) = (inner.starts_with(['-', '+']), inner.ends_with(['-', '+']));
                let word = inner[usize::from(open)..].trim_start();
                let word = &word[..word.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(word.len())];
                let stands_for = match word {
                    "generation" => Some("with"),
                    "endgeneration" => Some("endwith"),
                    _ => None,
                };
                if let Some(tag) = stands_for {
                    let lines = "\n".repeat(inner.matches('\n').count());
                    let (open, close) = (&inner[..usize::from(open)], &inner[inner.len() - usize::from(close)..]);
                    out.push_str(&format!("{{%{open} {tag} {lines}{close}%}}"));
                    rest = &tail[len..];
                    continue;
                }
                if word == "raw" { len + end_of_raw(&tail[len..]) } else { len }
            }
            _ => 1,
        };
        out.push_str(&tail[..len]);
        rest = &tail[len..];
    }
    out + rest
}

/// Length of an expression or statement that ends with `end` outside of strings.
fn construct(text: &str, end: &str) -> usize {
    let mut quote = None;
    let mut escaped = false;
    for (i, c) in text.char_indices().skip(2) {
        match quote {
            Some(q) => {
                if !escaped && c == q {
                    quote = None;
                }
                escaped = !escaped && c == '\\';
            }
            None if c == '"' || c == '\'' => quote = Some(c),
            None if text[i..].starts_with(end) => return i + end.len(),
            None => {}
        }
    }
    text.len()
}

/// Length of what belongs to a raw block whose opening tag has been read.
fn end_of_raw(text: &str) -> usize {
    let mut at = 0;
    while let Some(found) = text[at..].find("{%") {
        at += found + 2;
        if text[at..].trim_start_matches(['-', '+']).trim_start().starts_with("endraw") {
            return text[at..].find("%}").map_or(text.len(), |end| at + end + 2);
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_tags_are_scopes_and_only_outside_of_text() {
        for (source, expected) in [
            ("{% generation %}a{%- endgeneration -%}", "{% with %}a{%- endwith -%}"),
            ("{%-  generation\n%}", "{%- with \n%}"),
            ("{{ '{% generation %}' }}", "{{ '{% generation %}' }}"),
            ("{# {% generation %} #}", "{# {% generation %} #}"),
            (
                "{% raw %}{% generation %}{% endraw %}{% generation %}",
                "{% raw %}{% generation %}{% endraw %}{% with %}",
            ),
            ("{% set generation = 1 %}{", "{% set generation = 1 %}{"),
            ("{% generation", "{% generation"),
        ] {
            assert_eq!(generation_tags(source), expected);
        }
        assert_eq!(line_feeds("a\r\nb\rc\n"), "a\nb\nc\n");
    }
}
