//! Content and calls of an answer, as its text comes.
//!
//! Invariant: the parts add up to the text without what stands around calls, however it is cut into pieces. Text that may turn
//! out to stand around a call is held back until that is known.

use super::{OPEN, Tools};

/// What the text goes on with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Content(String),
    /// Another call begins.
    Call {
        name: String,
    },
    /// More of the last call's arguments.
    Arguments(String),
}

/// Where the text is.
#[derive(Clone, Copy, Debug)]
enum Place {
    Content,
    /// What stands before arguments.
    Before,
    /// The arguments of a tool.
    Arguments(usize),
    /// Behind a call.
    Behind,
}

/// See the module.
pub(crate) struct Split<'t> {
    tools: &'t Tools,
    place: Place,
    /// What has not been told.
    text: String,
}

impl<'t> Split<'t> {
    /// Of an answer with these tools.
    pub(crate) fn new(tools: &'t Tools) -> Self {
        Self { tools, place: if tools.forced { Place::Before } else { Place::Content }, text: String::new() }
    }

    /// Takes the next piece of text.
    pub(crate) fn push(&mut self, piece: &str) -> Vec<Part> {
        self.text += piece;
        let mut parts = Vec::new();
        while self.go_on(&mut parts) {}
        parts
    }

    /// Tells one thing, if it is known; false when more text is needed.
    fn go_on(&mut self, parts: &mut Vec<Part>) -> bool {
        match self.place {
            Place::Content => {
                let mark = self.text.find(OPEN);
                // Whitespace before a call is no content.
                let sure = match mark {
                    Some(mark) => self.text[..mark].trim_end().len(),
                    None => {
                        let may_open = |at: &usize| OPEN.starts_with(&self.text[*at..]);
                        let at = self.text.char_indices().map(|(at, _)| at).find(may_open);
                        self.text[..at.unwrap_or(self.text.len())].trim_end().len()
                    }
                };
                parts.extend((sure > 0).then(|| Part::Content(self.text[..sure].to_owned())));
                self.text.drain(..mark.unwrap_or(sure));
                if mark.is_some() {
                    self.place = Place::Before;
                }
                mark.is_some()
            }
            Place::Before => {
                let found = self.tools.tools.iter().position(|tool| self.text.starts_with(&tool.before));
                let Some(found) = found.filter(|_| !self.text.is_empty()) else { return false };
                let tool = &self.tools.tools[found];
                self.text.drain(..tool.before.len());
                parts.push(Part::Call { name: tool.name.clone() });
                self.place = Place::Arguments(found);
                true
            }
            Place::Arguments(tool) => {
                let behind = self.tools.tools[tool].behind;
                // No line ends within arguments, so this is no part of them.
                let end = Some(behind).filter(|behind| behind.contains('\n')).and_then(|behind| self.text.find(behind));
                let sure =
                    end.unwrap_or_else(|| self.text.floor_char_boundary(self.text.len().saturating_sub(behind.len())));
                parts.extend((sure > 0).then(|| Part::Arguments(self.text[..sure].to_owned())));
                self.text.drain(..sure + end.map_or(0, |_| behind.len()));
                if end.is_some() {
                    self.place = Place::Behind;
                }
                end.is_some()
            }
            Place::Behind => {
                let Some(mark) = self.text.find(OPEN) else { return false };
                self.text.drain(..mark);
                self.place = Place::Before;
                true
            }
        }
    }

    /// What was held back. A call that was cut off has part of its arguments.
    pub(crate) fn finish(self) -> Option<Part> {
        let Self { tools, place, text } = self;
        match place {
            Place::Content if !text.is_empty() => Some(Part::Content(text)),
            Place::Arguments(tool) => {
                let arguments = text.strip_suffix(tools.tools[tool].behind).unwrap_or(&text);
                (!arguments.is_empty()).then(|| Part::Arguments(arguments.to_owned()))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::Params;
    use serde_json::{Value, json};

    const HERMES: &str = "{% for t in tools %}{{ t }}{% endfor %} tool_calls <tool_call> </tool_call>";

    fn tools(template: &str, choice: Value, names: &[&str]) -> Tools {
        let tool =
            |name: &&str| json!({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}});
        let tools: Vec<Value> = names.iter().map(tool).collect();
        let body = json!({"tools": tools, "tool_choice": choice});
        super::super::take(&mut Params::read(body.to_string().as_bytes()).unwrap(), template).unwrap().unwrap()
    }

    /// Content, and calls with their arguments, however the text is cut.
    fn split(tools: &Tools, text: &str) -> (String, Vec<(String, String)>) {
        let mut all = Vec::new();
        for length in [1, 2, 3, 7, text.len().max(1)] {
            let mut split = Split::new(tools);
            let chars: Vec<char> = text.chars().collect();
            let pieces = chars.chunks(length).map(|piece| piece.iter().collect::<String>());
            let mut parts: Vec<Part> = pieces.flat_map(|piece| split.push(&piece)).collect();
            parts.extend(split.finish());
            let (mut content, mut calls) = (String::new(), Vec::<(String, String)>::new());
            for part in parts {
                match part {
                    Part::Content(text) => content += &text,
                    Part::Call { name } => calls.push((name, String::new())),
                    Part::Arguments(text) => calls.last_mut().unwrap().1 += &text,
                }
            }
            all.push((content, calls));
        }
        assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "{all:?}");
        all.swap_remove(0)
    }

    #[test]
    fn calls_are_found_however_the_text_is_cut() {
        let call = |name: &str, arguments: &str| (name.to_owned(), arguments.to_owned());
        let named = tools("", json!({"type": "function", "function": {"name": "f"}}), &["f", "g"]);
        assert_eq!(split(&named, r#"{"é": "}"}"#), (String::new(), vec![call("f", r#"{"é": "}"}"#)]));
        let required = tools("", json!("required"), &["f", "ff"]);
        let text = r#"{"name": "ff", "arguments": {"a": {}}}"#;
        assert_eq!(split(&required, text), (String::new(), vec![call("ff", r#"{"a": {}}"#)]));
        let hermes = tools(HERMES, json!("required"), &["f"]);
        let one = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\":1}}\n</tool_call>";
        assert_eq!(split(&hermes, one), (String::new(), vec![call("f", "{\"a\":1}")]));
        let auto = tools(HERMES, json!("auto"), &["f"]);
        let two = format!("Let me <see>.\n\n{one}\n{one}");
        let calls = vec![call("f", "{\"a\":1}"), call("f", "{\"a\":1}")];
        assert_eq!(split(&auto, &two), ("Let me <see>.".to_owned(), calls));
        assert_eq!(split(&auto, " a <tool \n"), (" a <tool \n".to_owned(), Vec::new()));
        assert_eq!(split(&auto, one).1.len(), 1);
        assert_eq!(split(&auto, ""), (String::new(), Vec::new()));
    }

    #[test]
    fn a_call_that_was_cut_off_has_part_of_its_arguments() {
        let hermes = tools(HERMES, json!("required"), &["f"]);
        let cut = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\":1";
        assert_eq!(split(&hermes, cut).1, [("f".to_owned(), "{\"a\":1".to_owned())]);
        assert_eq!(split(&hermes, "<tool_c").1, []);
    }
}
