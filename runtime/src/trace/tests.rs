//! Numbers that read as the same bits, and files that are not what was recorded.

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;

use super::*;

fn row(x: f32) -> Row {
    let some = Some(x);
    let (prob, margin, entropy, row_entropy) = (some, some, some, some);
    Row { position: 3, token: 7, prob, margin, entropy, row_entropy, confidence: some, noise: some, draw: None }
}

fn head() -> Head {
    let about = About {
        artifact: "a".into(),
        compiler: "dlxc".into(),
        tokenizer: "t".into(),
        target: "cpu".into(),
        device: "scalar on 1 threads".into(),
        kernels: vec!["scalar".into()],
        threads: Some(1),
    };
    let mut policy = DecodePolicy::greedy(0, 4);
    policy.reveal = crate::decode::Reveal::new("threshold").with("threshold", 0.1);
    policy.seed = u64::MAX;
    let (format, version, runtime) = (FORMAT.into(), VERSION, "0".into());
    Head { format, version, runtime, about, policy, prompt: vec![5, 6], max_new: 2 }
}

/// A recording of one pass, line by line.
fn lines() -> Vec<String> {
    let (kind, reads) = (ForwardKind::Block, Reads::Stats);
    let pass = Fed { kind, start: 0, rows: 4, past: 0, at: 0, visible: 4, spans: 1, reads, looks: vec![2, 3] };
    let decision = Decided {
        why: Why::Rule,
        quota: 1,
        part: 0.25,
        block: [0, 4],
        rows: vec![row(0.1)],
        revealed: vec![(3, 7)],
        canvas: vec![5, 6, 0, 7],
    };
    let tokens = BTreeMap::from([(7, "\u{1b}[2J".to_owned())]);
    let end = End { finish: FinishReason::Cancelled, held: 0, ids: vec![7], tokens };
    let line = |line: &Line| serde_json::to_string(line).unwrap();
    let head = serde_json::to_string(&head()).unwrap();
    vec![head, line(&Line::Pass(pass)), line(&Line::Decision(decision)), line(&Line::End(end))]
}

fn read(bytes: &[u8]) -> Result<Trace, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.jsonl");
    std::fs::write(&path, bytes).unwrap();
    let read = Trace::read(&path).map_err(|e| e.to_string());
    read.map_err(|e| {
        let (place, message) = e.split_once("t.jsonl: ").unwrap_or_else(|| panic!("no file in {e}"));
        assert_eq!(Path::new(place), dir.path());
        message.to_owned()
    })
}

fn text(lines: &[String]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

#[test]
fn what_was_written_is_read() {
    let trace = read(text(&lines()).as_bytes()).unwrap();
    assert_eq!(trace.head, head());
    assert_eq!((trace.steps.len(), trace.steps[0].line), (1, 2));
    let decision = trace.steps[0].decision.as_ref().unwrap();
    assert_eq!((&decision.rows[..], &decision.revealed[..]), (&[row(0.1)][..], &[(3, 7)][..]));
    assert_eq!(trace.end.tokens[&7], "\u{1b}[2J");
}

proptest! {
    #[test]
    fn numbers_read_as_the_same_bits(bits in any::<u32>()) {
        let x = f32::from_bits(bits);
        prop_assume!(x.is_finite());
        let text = serde_json::to_string(&row(x)).unwrap();
        let back: Row = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(back.prob.map(f32::to_bits), Some(bits), "{}", text);
    }

    #[test]
    fn no_bytes_make_it_panic(at in 0usize..4000, byte in any::<u8>()) {
        let mut bytes = text(&lines()).into_bytes();
        let at = at % bytes.len();
        bytes[at] = byte;
        let _ = read(&bytes);
    }
}

#[test]
fn a_file_that_was_cut_is_refused_wherever_it_was() {
    let whole = text(&lines());
    for end in 0..whole.len() {
        let error = read(&whole.as_bytes()[..end]).unwrap_err();
        let line = whole[..end].matches('\n').count() + 1;
        assert!(error.starts_with(&format!("line {line}: ")), "{end}: {error}");
    }
}

#[test]
fn what_was_not_recorded_is_refused_by_its_line() {
    let with = |line: usize, from: &str, to: &str| {
        let mut lines = lines();
        assert!(lines[line - 1].contains(from), "{from} in {}", lines[line - 1]);
        lines[line - 1] = lines[line - 1].replacen(from, to, 1);
        read(text(&lines).as_bytes()).unwrap_err()
    };
    for (line, from, to, message) in [
        (1, "\"version\":1", "\"version\":2", "trace format 2, this build reads 1"),
        (1, "dlxc-trace", "other", "is no dlxc-trace head"),
        (1, "\"format\"", "\"fromat\"", "is no dlxc-trace head"),
        (1, "\"attention\":\"block-causal\"", "\"attention\":\"sideways\"", "the head cannot be read"),
        (1, "\"max_new\":2", "\"max_new\":-2", "the head cannot be read"),
        (2, "\"pass\"", "\"parse\"", "is no record of a trace"),
        (2, "\"rows\":4", "\"rows\":0", "a pass that no sequence asks for"),
        (2, "\"start\":0", "\"start\":18446744073709551615", "a pass that no sequence asks for"),
        (2, "\"start\":0", "\"start\":1e99", "is no record of a trace"),
        (2, "\"looks\":[2,3]", "\"looks\":[2,4]", "a pass that no sequence asks for"),
        (2, "\"spans\":1", "\"spans\":900", "a pass that no sequence asks for"),
        (3, "\"prob\":0.1", "\"prob\":NaN", "is no record of a trace"),
        (3, "\"prob\":0.1", "\"prob\":1e39", "is no record of a trace"),
        (3, "\"prob\":0.1", "\"prob\":1e999", "is no record of a trace"),
        (3, "\"part\":0.25", "\"part\":-1e39", "is no record of a trace"),
        (3, "\"block\":[0,4]", "\"block\":[4,0]", "a block 4..0 with a canvas of 4"),
        (3, "\"block\":[0,4]", "\"block\":[9,13]", "a block 9..13 with a canvas of 4 at 2 positions"),
        (3, "\"canvas\":[5,6,0,7]", "\"canvas\":[5,6,0]", "a block 0..4 with a canvas of 3"),
        (3, "\"position\":3", "\"position\":4", "position 4 is outside the block 0..4"),
        (3, "\"revealed\":[[3,7]]", "\"revealed\":[[4,7]]", "position 4 is outside the block 0..4"),
        (3, "\"token\":7", "\"token\":99999999999", "is no record of a trace"),
        (3, "\"quota\"", "\"quote\"", "is no record of a trace"),
        (4, "\"held\":0", "\"held\":3", "3 of 2 prompt tokens were held"),
        (4, "cancelled", "tired", "is no record of a trace"),
    ] {
        let error = with(line, from, to);
        assert!(error.starts_with(&format!("line {line}: ")) && error.contains(message), "{from} → {to}: {error}");
    }
    let mut doubled = lines();
    doubled.insert(3, doubled[2].clone());
    assert!(read(text(&doubled).as_bytes()).unwrap_err().starts_with("line 4: a decision that no pass"));
    let mut more = lines();
    more.push(more[1].clone());
    assert!(read(text(&more).as_bytes()).unwrap_err().starts_with("line 5: there is more after the end"));
    assert!(read(b"\xff\n").unwrap_err().contains("line 1: is not UTF-8"));
    assert!(Trace::read(Path::new("/")).unwrap_err().to_string().contains("is no file"));
    assert!(Trace::read(Path::new("none.jsonl")).unwrap_err().to_string().contains("check that the file exists"));
}
