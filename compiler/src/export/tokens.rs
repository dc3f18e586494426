//! Token sequences that ranges are calibrated on.

use std::path::Path;

use dlx_ir::Error;
use dlx_runtime::text::Tokenizer;
use serde::Deserialize;

/// Shares of the answer that are masked. A denoising model meets all of them.
pub const RATIOS: &[f64] = &[0.0, 0.25, 0.5, 0.75, 1.0];

/// Tokens, of which those from `answer` on may be masked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sequence {
    /// Token ids.
    pub ids: Vec<i32>,
    /// Where the answer begins.
    pub answer: usize,
}

#[derive(Deserialize)]
struct Line {
    prompt: Option<String>,
    answer: Option<String>,
    text: Option<String>,
}

/// Reads a file of one JSON object a line: `prompt` and, if known, `answer`, or `text`. `render` makes what the model is asked of
/// a prompt.
///
/// # Errors
/// A file that is empty, not of that form, or has a line of more than `max_seq` tokens; names file and line.
pub fn read(
    path: &Path,
    tokenizer: &Tokenizer,
    render: &dyn Fn(&str) -> Result<String, Error>,
    max_seq: usize,
) -> Result<Vec<Sequence>, Error> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Error::new(path.display(), format!("cannot be read: {e}")).help("give a JSONL file of prompts"))?;
    let mut sequences = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        let place = format!("{}:{}", path.display(), number + 1);
        let help = "a line is an object with `prompt` (and `answer`, if known) or `text`";
        let line: Line =
            serde_json::from_str(line).map_err(|e| Error::new(&place, format!("is no JSON object: {e}")).help(help))?;
        let encode = |text: &str| tokenizer.encode(text).map_err(|e| Error::new(&place, e.to_string()));
        let sequence = match (&line.prompt, &line.text) {
            (Some(prompt), _) => {
                let prompt = encode(&render(prompt)?)?;
                let answer = line.answer.as_deref().map(encode).transpose()?.unwrap_or_default();
                // Without an answer half of the prompt stands in for one.
                let start = if answer.is_empty() { prompt.len() / 2 } else { prompt.len() };
                Sequence { ids: prompt.into_iter().chain(answer).collect(), answer: start }
            }
            (None, Some(text)) => {
                let ids = encode(text)?;
                Sequence { answer: ids.len() / 2, ids }
            }
            (None, None) => return Err(Error::new(place, "has neither `prompt` nor `text`").help(help)),
        };
        if sequence.ids.len() > max_seq {
            let message = format!("has {} tokens, and --max-seq is {max_seq}", sequence.ids.len());
            return Err(Error::new(place, message).help("shorten the line, or raise --max-seq"));
        }
        if !sequence.ids.is_empty() {
            sequences.push(sequence);
        }
    }
    if sequences.is_empty() {
        return Err(Error::new(path.display(), "has no line to calibrate on")
            .help("give a JSONL file with a `prompt` or a `text` on each line"));
    }
    Ok(sequences)
}

/// Sequences of tokens drawn by chance, where no text was given.
pub fn random(vocab: usize, count: usize, len: usize) -> Vec<Sequence> {
    let mut state = 1;
    let mut draw = || (next(&mut state) % vocab.max(1) as u64) as i32;
    (0..count).map(|_| Sequence { ids: (0..len).map(|_| draw()).collect(), answer: len / 2 }).collect()
}

/// The sequence with a share of its answer masked, chosen by `seed`.
pub fn masked(sequence: &Sequence, ratio: f64, mask_id: i32, seed: u64) -> Vec<i32> {
    let mut state = seed.wrapping_add(1);
    let below = (ratio * (1u64 << 32) as f64) as u64;
    let mask = |(i, id): (usize, &i32)| {
        let hidden = i >= sequence.answer && (next(&mut state) >> 32) < below;
        if hidden { mask_id } else { *id }
    };
    sequence.ids.iter().enumerate().map(mask).collect()
}

/// SplitMix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
