//! A pool of lines of IR: each is kept once, and lines of layers that differ in the layer's number alone are one.
//!
//! Invariant: putting the number of a [`Line`] in the place of every [`HOLE`] of its text, and the number before it in the
//! place of every [`BEFORE`], gives the line back.

use std::collections::HashMap;

use serde::Serialize;

/// What stands where a layer's number was: a character that no printed line has, or the line is kept as it is.
const HOLE: char = '\u{1}';
/// What stands where the number of the layer before was: layers read what the one before them made.
const BEFORE: char = '\u{2}';

/// A line of the pool: its text, and the number of its layer, or -1 for one without.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub(super) struct Line(pub(super) usize, pub(super) i64);

/// See the module.
#[derive(Default)]
pub(super) struct Lines {
    texts: Vec<String>,
    places: HashMap<String, usize>,
}

impl Lines {
    /// Adds a line that belongs to a layer, or to none.
    pub(super) fn put(&mut self, text: &str, layer: Option<u32>) -> Line {
        let opened = layer.and_then(|layer| open(text, layer));
        let number = if opened.is_some() { layer.map_or(-1, i64::from) } else { -1 };
        let text = opened.unwrap_or_else(|| text.to_owned());
        let next = self.texts.len();
        let place = *self.places.entry(text).or_insert_with_key(|text| {
            self.texts.push(text.clone());
            next
        });
        Line(place, number)
    }

    /// The texts, by their places.
    pub(super) fn into_texts(self) -> Vec<String> {
        self.texts
    }
}

/// The number of the layer that a name says: the digits of `l7.q`, `layers.7.q` or `layers/7/q`.
pub(super) fn layer_of(name: &str) -> Option<u32> {
    let starts = ["l", "layers.", "layers/", "layers_", "layer.", "blocks.", "h.", "kv."];
    let number = |rest: &str| {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        matches!(rest.as_bytes()[digits], b'.' | b'/' | b'_').then(|| rest[..digits].parse().ok())?
    };
    let at_word = |at: usize| at == 0 || matches!(name.as_bytes()[at - 1], b'.' | b'/' | b'_');
    let after = |start: &str| {
        let mut words = name.match_indices(start).filter(|(at, _)| at_word(*at));
        words.find_map(|(at, word)| number(&name[at + word.len()..]))
    };
    starts.iter().find_map(|start| after(start))
}

/// The text with a hole wherever a word of a name is that number.
fn open(text: &str, layer: u32) -> Option<String> {
    if text.contains([HOLE, BEFORE]) {
        return None;
    }
    let before_it = layer.checked_sub(1).map(|before| before.to_string());
    let layer = layer.to_string();
    let (mut out, mut rest, mut before) = (String::with_capacity(text.len()), text, ' ');
    let mut found = false;
    while let Some(at) = rest.find(|c: char| c.is_ascii_digit()) {
        let digits = rest[at..].find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len() - at);
        let (ahead, number) = (&rest[..at], &rest[at..at + digits]);
        before = ahead.chars().next_back().unwrap_or(before);
        out.push_str(ahead);
        rest = &rest[at + digits..];
        let is_word = matches!(before, 'l' | '.' | '/' | '_') && rest.starts_with(['.', '/', '_']);
        if is_word && number == layer {
            out.push(HOLE);
            found = true;
        } else if is_word && before_it.as_deref() == Some(number) {
            out.push(BEFORE);
        } else {
            out.push_str(number);
        }
        before = '0';
    }
    out.push_str(rest);
    found.then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_layers_are_one_and_can_be_told_apart() {
        let mut lines = Lines::default();
        let text = |l: u32| format!("%l{l}.q = linear %l{}.x, @l{l}.w: f32[4, 64] from \"layers/{l}/q\"", l - 1);
        let put: Vec<Line> = (1..13).map(|l| lines.put(&text(l), Some(l))).collect();
        let plain = lines.put(&text(3), None);
        assert!(put.iter().zip(1..).all(|(line, l)| *line == Line(0, l)));
        assert_eq!(plain, Line(1, -1));
        let texts = lines.into_texts();
        assert_eq!(texts.len(), 2);
        for (Line(place, number), l) in put.into_iter().zip(1i64..) {
            let back = texts[place].replace(HOLE, &number.to_string()).replace(BEFORE, &(number - 1).to_string());
            assert_eq!((back, number), (text(u32::try_from(l).unwrap()), l));
        }
        // The sizes 4 and 64 are no layers, and a text that has the mark already is left alone.
        assert!(texts[0].contains("f32[4, 64]"), "{}", texts[0]);
        assert_eq!(open("%l4.\u{1}", 4), None);
    }

    #[test]
    fn layers_are_read_from_names() {
        let found =
            ["l0.q", "l12.attn.k", "model.layers.7.mlp.w", "layers/3/MatMul", "blocks.2.x", "kv.5.k"].map(layer_of);
        assert_eq!(found, [0, 12, 7, 3, 2, 5].map(Some));
        for none in ["logits", "l.q", "rel4.x", "l4", "embed", "l99999999999.q", ""] {
            assert_eq!(layer_of(none), None, "{none}");
        }
    }
}
