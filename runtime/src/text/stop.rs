//! Stop strings, matched on streamed text.
//!
//! Invariant: the result does not depend on how the text was cut into pieces. The stop string that is completed first
//! ends the text (of several completed by the same character, the longest); neither it nor anything after it is
//! returned, and text that could be the beginning of one is held back until that is decided.

/// Watches a stream of text for stop strings.
#[derive(Clone, Debug)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
}

/// What a piece of text decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Text that can be shown.
    pub text: String,
    /// Whether a stop string was completed.
    pub stopped: bool,
}

impl StopStrings {
    /// Watches for `stops`; empty ones never match.
    pub fn new(stops: impl IntoIterator<Item = String>) -> Self {
        Self { stops: stops.into_iter().filter(|stop| !stop.is_empty()).collect(), held: String::new() }
    }

    /// Adds a piece of text. After a stop nothing more should be added.
    pub fn push(&mut self, piece: &str) -> Checked {
        self.held.push_str(piece);
        if let Some(start) = self.first_completed() {
            self.held.truncate(start);
            return Checked { text: std::mem::take(&mut self.held), stopped: true };
        }
        let undecided = self.undecided_from();
        let kept = self.held.split_off(undecided);
        Checked { text: std::mem::replace(&mut self.held, kept), stopped: false }
    }

    /// The text that was held back, when no more will come.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Where the stop string begins that is completed first.
    fn first_completed(&self) -> Option<usize> {
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str()).map(|start| (start, stop.len())));
        found.min_by_key(|&(start, len)| (start + len, start)).map(|(start, _)| start)
    }

    /// Where the longest tail begins that some stop string begins with.
    fn undecided_from(&self) -> usize {
        let boundaries = self.held.char_indices().map(|(at, _)| at);
        let begins = |at: &usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[*at..]));
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        boundaries.filter(|at| self.held.len() - at < longest).find(begins).unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let mut watch = StopStrings::new(stops.iter().map(|&stop| stop.to_owned()));
        let mut shown = Vec::new();
        for piece in pieces {
            let checked = watch.push(piece);
            shown.push(checked.text);
            if checked.stopped {
                return (shown, true);
            }
        }
        shown.push(watch.finish());
        (shown, false)
    }

    #[test]
    fn matches_across_pieces_and_holds_back_beginnings() {
        assert_eq!(run(&["END"], &["fooE", "N", "D bar"]), (vec!["foo".into(), "".into(), "".into()], true));
        assert_eq!(
            run(&["END"], &["fooE", "N", "d", "E"]),
            (vec!["foo".into(), "".into(), "ENd".into(), "".into(), "E".into()], false)
        );
    }

    #[test]
    fn the_first_completed_stop_wins() {
        assert_eq!(run(&["abc", "b"], &["xabc"]).0, ["xa"]);
        assert_eq!(run(&["abc", "c"], &["xabc"]).0, ["x"], "completed together: the longest");
        assert_eq!(run(&["aab"], &["aaab"]).0, ["a"]);
    }

    #[test]
    fn no_stops_hold_nothing_back() {
        assert_eq!(run(&[], &["a", "b"]), (vec!["a".into(), "b".into(), "".into()], false));
        assert_eq!(run(&[""], &["a"]), (vec!["a".into(), "".into()], false));
    }

    #[test]
    fn characters_are_not_split() {
        assert_eq!(run(&["é!"], &["aé", "?"]), (vec!["a".into(), "é?".into(), "".into()], false));
    }

    proptest! {
        #[test]
        fn the_cut_into_pieces_does_not_matter(
            text in "[abé]{0,24}",
            stops in proptest::collection::vec("[abé]{0,4}", 0..4),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let characters: Vec<String> = text.chars().map(String::from).collect();
            let mut pieces = vec![String::new()];
            let cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(characters.len() + 1)).collect();
            for (at, character) in characters.iter().enumerate() {
                if cuts.contains(&at) {
                    pieces.push(String::new());
                }
                pieces.last_mut().unwrap().push_str(character);
            }
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let one_by_one: Vec<&str> = characters.iter().map(String::as_str).collect();
            let (shown, stopped) = run(&stops, &pieces);
            let (expected, expected_stop) = run(&stops, &one_by_one);
            prop_assert_eq!(shown.concat(), expected.concat());
            prop_assert_eq!(stopped, expected_stop);
            let contains = stops.iter().any(|stop| !stop.is_empty() && text.contains(stop));
            prop_assert_eq!(stopped, contains);
            if !stopped {
                prop_assert_eq!(shown.concat(), text);
            }
        }
    }
}
