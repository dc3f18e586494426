//! Files of questions: one JSON object per line.

use std::path::Path;

use dlx_ir::Error;
use dlx_runtime::session::Prompt;
use dlx_runtime::text::Message;
use serde::de::DeserializeOwned;

/// The questions of a file, with the numbers of their lines.
///
/// # Errors
/// A file that cannot be read or holds none, or the first line that is no question.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<(usize, T)>, Error> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::new(path.display(), format!("cannot be read: {e}")))?;
    let lines = text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty());
    let questions = lines.map(|(i, line)| {
        let question = serde_json::from_str(line).map_err(|e| {
            Error::new(format_args!("{}:{}", path.display(), i + 1), format!("is not a question: {e}"))
                .help("write one object per line: {\"prompt\": \"…\", \"answer\": \"…\"}")
        });
        question.map(|question| (i + 1, question))
    });
    let questions = questions.collect::<Result<Vec<_>, _>>()?;
    if questions.is_empty() { Err(Error::new(path.display(), "holds no questions")) } else { Ok(questions) }
}

/// A question as a conversation of one turn.
pub(super) fn chat(prompt: &str, system: Option<&str>) -> Prompt {
    let system = system.map(|text| Message::new("system", text));
    let messages = system.into_iter().chain([Message::new("user", prompt)]).collect();
    Prompt::Chat { messages, variables: serde_json::Map::new() }
}
