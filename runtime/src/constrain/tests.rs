//! Grammars beside what they mean.

mod schemas;

use super::*;

/// Tokens of all bytes, by value, and of some longer texts.
pub(crate) fn vocabulary() -> Arc<Vocabulary> {
    let longer = ["ab", "\": \"", "\"}", "true", " the", "42", "é", "{\"", "\n\n", "é\"", "\\u00"];
    let bytes: Vec<Vec<u8>> = (0..=u8::MAX).map(|b| vec![b]).chain(longer.map(|t| t.as_bytes().to_vec())).collect();
    Arc::new(Vocabulary::of((0..).zip(bytes.iter().map(Vec::as_slice))))
}

/// The automaton over bytes of a grammar.
fn bytes(grammar: &Grammar) -> Result<ByteAutomaton, ConstraintError> {
    let mut writer = Writer::new()?;
    let end = writer.end();
    let start = grammar.write(&mut writer, 0, end)?;
    ByteAutomaton::new(&writer.finish(start)?)
}

/// Whether a text is one of the grammar.
fn accepts(automaton: &ByteAutomaton, text: &str) -> bool {
    let state = text.bytes().try_fold(0, |state, byte| automaton.step(state, byte));
    state.is_some_and(|state| automaton.is_complete(state))
}

fn regex(expression: &str) -> ByteAutomaton {
    bytes(&Grammar::Regex(expression.into())).unwrap()
}

#[test]
fn expressions_match_whole_texts() {
    for (expression, yes, no) in [
        ("a|ab|abc", &["a", "ab", "abc"][..], &["", "b", "abcd"][..]),
        ("^a*$", &["", "aa"], &["b"]),
        ("(?i)yes", &["yes", "YES", "yEs"], &["y"]),
        ("[^x]", &["é", "😀", "\n", "a"], &["x", "", "aa"]),
        (".{2}", &["éé", "a😀"], &["é", "a\n"]),
        (r"\d{1,3}(\.\d+)?", &["1", "123.45", "٣"], &["1.", "1234", ".5"]),
        ("(a|b){2,3}c?", &["ab", "bab", "aac"], &["a", "abab"]),
        ("(x{0}|y)*z", &["z", "yyz"], &["xz"]),
    ] {
        let automaton = regex(expression);
        yes.iter().for_each(|text| assert!(accepts(&automaton, text), "{expression} {text}"));
        no.iter().for_each(|text| assert!(!accepts(&automaton, text), "{expression} {text}"));
    }
}

#[test]
fn what_is_no_regular_language_or_too_much_is_refused() {
    let refused = |expression: &str| bytes(&Grammar::Regex(expression.into())).err().map(|e| e.to_string());
    for (expression, why) in [
        ("(", "unclosed group"),
        (r"(a)\1", "backreferences"),
        ("(?=a)b", "look-around"),
        (r"a\bb", "looks around"),
        ("a^b", "looks around"),
        (r"(?-u:\xFF)", "UTF-8"),
        ("(a|b)*a(a|b){30}", "too large"),
        ("a{1000}{1000}{1000}", "too large"),
        ("[a&&b]", "no answer fits"),
    ] {
        let error = refused(expression).unwrap_or_default();
        assert!(error.contains(why), "{expression}: {error}");
    }
    assert_eq!(refused("((a{0}){1000}){1000}"), None);
    let deep = (0..40).fold(Grammar::Text("a".into()), |inner, _| Grammar::Sequence(vec![inner]));
    assert!(matches!(bytes(&deep), Err(ConstraintError::TooLarge(_))));
}

#[test]
fn grammars_are_made_of_grammars() {
    let text = |text: &str| Grammar::Text(text.into());
    let grammar = Grammar::Sequence(vec![
        Grammar::Without("<x>".into()),
        Grammar::AnyOf(vec![text(""), Grammar::Repeated(Box::new(Grammar::Sequence(vec![text("<x>"), text("1")])))]),
    ]);
    let automaton = bytes(&grammar).unwrap();
    for (input, expected) in [
        ("", true),
        ("é<x", true),
        ("<<x", true),
        ("<<x>", false),
        ("<x>1", true),
        ("a<<x>1<x>1", true),
        ("a<x>1b", false),
        ("<x>2", false),
        ("<x<x<x>1", true),
        (">x<", true),
    ] {
        assert_eq!(accepts(&automaton, input), expected, "{input}");
    }
    assert!(bytes(&Grammar::Without(String::new())).is_err());
    assert!(bytes(&Grammar::Without("é".into())).is_err());
}

#[test]
fn an_automaton_over_tokens_says_what_the_one_over_bytes_says() {
    let vocabulary = vocabulary();
    let spelled: Vec<Vec<u8>> = (0..=u8::MAX)
        .map(|b| vec![b])
        .chain(
            ["ab", "\": \"", "\"}", "true", " the", "42", "é", "{\"", "\n\n", "é\"", "\\u00"]
                .map(|t| t.as_bytes().to_vec()),
        )
        .collect();
    let schema =
        serde_json::json!({"type": "object", "properties": {"ab": {"type": "string", "maxLength": 3}, "b": {}}});
    for grammar in [
        Grammar::Schema(schema),
        Grammar::Regex("[a-c]*é?(ab|true)+".into()),
        Grammar::Regex("(?s).*".into()),
        Grammar::Without("ab".into()),
    ] {
        let bytes = bytes(&grammar).unwrap();
        let constraint = Constraint::new(&grammar, &vocabulary).unwrap();
        let automaton = constraint.automaton();
        // Both walked side by side: every token leads on in both or in neither.
        let (mut seen, mut open) = (std::collections::HashSet::from([(0, 0)]), vec![(0, 0)]);
        while let Some((state, byte_state)) = open.pop() {
            assert_eq!(automaton.is_complete(state), bytes.is_complete(byte_state));
            for (id, spelling) in (0..).zip(&spelled) {
                let expected = spelling.iter().try_fold(byte_state, |state, &byte| bytes.step(state, byte));
                let to = automaton.step(state, id);
                assert_eq!(to.is_some(), expected.is_some(), "{grammar:?} {id}");
                if let (Some(to), Some(expected)) = (to, expected)
                    && seen.insert((to, expected))
                {
                    assert!(automaton.shortest(state) <= automaton.shortest(to) + 1);
                    open.push((to, expected));
                }
            }
        }
        assert!(seen.len() >= automaton.len());
    }
}

#[test]
fn what_the_tokens_cannot_write_is_said() {
    let tokens = [(1, &b"a"[..]), (2, b"b")];
    let few = Arc::new(Vocabulary::of(tokens.into_iter()));
    let new = |expression: &str| Constraint::new(&Grammar::Regex(expression.into()), &few);
    assert!(matches!(new("abc"), Err(ConstraintError::Tokenizer(_))));
    let constraint = new("a(b|c)").unwrap();
    assert_eq!(constraint.automaton().shortest(0), 2);
    assert!(constraint.is_finished_by(&[1, 2]) && !constraint.is_finished_by(&[1]));
    assert!(!new("a+").unwrap().is_finished_by(&[1, 1]), "more may follow");
}
