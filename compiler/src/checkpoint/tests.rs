//! Good checkpoints open and read back; every broken one is an error that names the file or tensor.

use super::*;
use std::fs;

fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models/sdar-tiny")
}

/// A safetensors file with this header and `data` zero bytes.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

/// A directory with these files and a `config.json`.
fn dir(files: &[Named]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), "{}").unwrap();
    for (name, bytes) in files {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

/// A file name and its bytes.
type Named<'a> = (&'a str, &'a [u8]);

const A: &str = r#"{"a": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}}"#;
const B: &str = r#"{"b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}"#;
const INDEX: &str = "model.safetensors.index.json";

#[test]
fn the_example_opens_and_its_rows_can_be_read() {
    let c = Checkpoint::open(example()).unwrap();
    assert_eq!(c.config.usize("hidden_size").unwrap(), 192);
    let generation = c.generation_config.as_ref().unwrap();
    assert_eq!(generation.tokens("eos_token_id").unwrap(), [510, 508]);
    let names: Vec<_> = c.names().collect();
    assert!(names.is_sorted() && names.contains(&"model.layers.3.self_attn.q_norm.weight"));
    assert_eq!(names.len(), 3 + 4 * 11);
    let name = "model.layers.0.mlp.down_proj.weight";
    let t = c.require(name, &[192, 512]).unwrap();
    assert_eq!((t.dtype, t.bytes.len()), (DType::BF16, 192 * 512 * 2));
    let (mut all, mut part) = (vec![0.0; 192 * 512], vec![0.0; 3 * 512]);
    c.read_rows(name, 0..192, &mut all).unwrap();
    c.prefetch_rows(name, 0..192);
    c.release_rows(name, 0..100);
    c.read_rows(name, 50..53, &mut part).unwrap();
    assert_eq!(part, all[50 * 512..53 * 512]);
    assert!(all.iter().any(|v| *v != 0.0));
    c.check_finite(name, 0, &all).unwrap();
    for (rows, len) in
        [(190..193, 3 * 512), (0..1, 511), (0..1, 513), (Range { start: 5, end: 4 }, 0), (0..usize::MAX, 0)]
    {
        assert!(c.read_rows(name, rows, &mut vec![0.0; len]).is_err());
    }
}

#[test]
fn the_file_can_be_read_by_the_public_reader_too() {
    let bytes = fs::read(example().join("model.safetensors")).unwrap();
    let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let ours = Checkpoint::open(example()).unwrap();
    assert_eq!(theirs.len(), ours.names().len());
    for name in ours.names() {
        let (a, b) = (theirs.tensor(name).unwrap(), ours.tensor(name).unwrap());
        assert!(a.data() == b.bytes && a.shape() == b.shape, "{name}");
    }
}

#[test]
fn shards_are_found_with_and_without_an_index() {
    let index = br#"{"metadata": {"total_size": 16}, "weight_map": {"a": "x.safetensors", "b": "y.safetensors"}}"#;
    let (a, b) = (file(A, 12), file(B, 4));
    let files: [Named; 3] = [("x.safetensors", &a), ("y.safetensors", &b), (INDEX, index)];
    for files in [&files[..], &files[..2]] {
        let d = dir(files);
        let c = Checkpoint::open(d.path()).unwrap();
        assert_eq!(c.names().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(c.tensor("b").unwrap().file, d.path().join("y.safetensors"));
    }
}

#[test]
fn a_value_that_is_not_finite_is_named() {
    let d = dir(&[("model.safetensors", &file(A, 12))]);
    let c = Checkpoint::open(d.path()).unwrap();
    let e = c.check_finite("a", 1, &[0.0, f32::NAN, 0.0]).unwrap_err();
    assert!(e.place.ends_with("model.safetensors: `a`") && e.message == "NaN at [1, 1]", "{e}");
}

#[test]
fn a_missing_or_misshapen_tensor_is_named() {
    let c = Checkpoint::open(example()).unwrap();
    let e = c.require("model.layers.9.mlp.up_proj.weight", &[1]).unwrap_err();
    assert!(e.message.contains("layers.9") && e.help.contains("layers.0.mlp.up_proj"), "{e}");
    let e = c.require("model.norm.weight", &[64]).unwrap_err();
    assert!(e.place.contains("model.norm.weight") && e.message.contains("[192]"), "{e}");
}

/// Opens a directory that must be refused; the error must hold every word of `words` and say what to do.
fn refused(what: &str, files: &[Named], words: &[&str]) {
    let d = dir(files);
    let e = Checkpoint::open(d.path()).expect_err(what);
    for word in words {
        assert!(e.to_string().contains(word), "{what}: `{word}` not in {e}");
    }
    assert!(!e.help.is_empty(), "{what}: {e}");
}

#[test]
fn broken_weight_files_are_refused() {
    let entry = |dtype: &str, shape: &str, range: &str| {
        format!(r#"{{"t": {{"dtype": "{dtype}", "shape": {shape}, "data_offsets": {range}}}}}"#)
    };
    let two = |a: &str, b: &str| {
        format!(
            r#"{{"t": {{"dtype": "F32", "shape": [1], "data_offsets": {a}}},
                "u": {{"dtype": "F32", "shape": [1], "data_offsets": {b}}}}}"#
        )
    };
    let lie = |len: u64| [len.to_le_bytes().as_slice(), A.as_bytes(), &[0; 12]].concat();
    let cases: Vec<(&str, Vec<u8>, &[&str])> = vec![
        ("empty file", vec![], &["is empty"]),
        ("truncated length", vec![1, 0, 0], &["3 bytes"]),
        ("truncated header", file(A, 0)[..40].to_vec(), &["header claims"]),
        ("header length huge", lie(u64::MAX), &["header claims"]),
        ("header length over the limit", lie(100_000_001), &["header claims"]),
        ("header length short", lie(20), &["JSON"]),
        ("header length into the data", lie(A.len() as u64 + 3), &["JSON"]),
        ("header not JSON", file("hello, world", 0), &["JSON"]),
        ("header is a list", file("[1, 2]", 0), &["JSON"]),
        ("header nested deeply", file(&"[".repeat(100_000), 0), &["JSON"]),
        ("cut data", file(A, 11), &["`a`", "0 to 12 of 11"]),
        ("trailing data", file(A, 13), &["1 bytes after the last tensor"]),
        ("overlap", file(&two("[0, 4]", "[2, 6]"), 6), &["`u`", "overlap"]),
        ("same bytes", file(&two("[0, 4]", "[0, 4]"), 4), &["overlap"]),
        ("hole", file(&two("[0, 4]", "[8, 12]"), 12), &["`u`", "4 bytes before"]),
        ("backwards", file(&entry("F32", "[1]", "[4, 0]"), 4), &["`t`"]),
        ("beyond the file", file(&entry("F32", "[1]", "[1000, 1004]"), 4), &["`t`", "of 4"]),
        ("offset overflow", file(&entry("F32", "[1]", "[0, 18446744073709551615]"), 4), &["`t`"]),
        ("offset beyond u64", file(&entry("F32", "[1]", "[0, 99999999999999999999]"), 4), &["`t`"]),
        ("negative offset", file(&entry("F32", "[1]", "[-4, 0]"), 4), &["`t`"]),
        ("one offset", file(&entry("F32", "[1]", "[0]"), 4), &["`t`"]),
        ("negative dimension", file(&entry("F32", "[-1]", "[0, 4]"), 4), &["`t`"]),
        ("float dimension", file(&entry("F32", "[1.0]", "[0, 4]"), 4), &["`t`"]),
        ("shape overflow", file(&entry("F32", "[4294967296, 4294967296, 4]", "[0, 4]"), 4), &["`t`"]),
        ("empty dimension", file(&entry("F32", "[0, 4294967296, 4294967296]", "[0, 0]"), 0), &["`t`", "empty"]),
        ("many dimensions", file(&entry("F32", "[1,1,1,1,1,1,1,1,1]", "[0, 4]"), 4), &["`t`", "9 dimensions"]),
        ("shape and bytes differ", file(&entry("F32", "[2]", "[0, 4]"), 4), &["`t`", "[2]"]),
        ("dtype I64", file(&entry("I64", "[1]", "[0, 8]"), 8), &["`t`", "I64", "floating point"]),
        ("dtype F8", file(&entry("F8_E4M3", "[1]", "[0, 1]"), 1), &["`t`", "F8_E4M3"]),
        ("dtype unknown", file(&entry("X9", "[1]", "[0, 8]"), 8), &["`t`", "X9"]),
        ("dtype a number", file(r#"{"t": {"dtype": 1, "shape": [1], "data_offsets": [0, 4]}}"#, 4), &["`t`"]),
        ("entry a string", file(r#"{"t": "F32"}"#, 4), &["`t`"]),
        ("name with control characters", file(&A.replace("\"a\"", r#""a\u001b[2J""#), 12), &["tensor name"]),
        (
            "name twice",
            file(&format!("{}, {}", &A[..A.len() - 1], A[1..].replace("0, 12", "12, 24")), 24),
            &["`a`", "twice"],
        ),
    ];
    for (what, bytes, words) in cases {
        let mut all = vec!["model.safetensors"];
        all.extend(words);
        refused(what, &[("model.safetensors", &bytes)], &all);
    }
}

#[test]
fn indexes_that_lie_are_refused() {
    let (a, b) = (file(A, 12), file(B, 4));
    let (x, y): (Named, Named) = (("x.safetensors", &a), ("y.safetensors", &b));
    type Case<'a> = (&'a str, &'a str, &'a [Named<'a>], &'a [&'a str]);
    let cases: &[Case] = &[
        (
            "missing shard",
            r#"{"weight_map": {"a": "x.safetensors", "b": "y.safetensors"}}"#,
            &[x],
            &["1 of 2", "y.saf"],
        ),
        (
            "listed in another shard",
            r#"{"weight_map": {"a": "x.safetensors", "c": "y.safetensors"}}"#,
            &[x, y],
            &["`c`", "y.saf"],
        ),
        (
            "listed but absent",
            r#"{"weight_map": {"a": "x.safetensors", "c": "x.safetensors"}}"#,
            &[x],
            &["`c`", "x.saf"],
        ),
        ("wrong shard", r#"{"weight_map": {"a": "y.safetensors", "b": "x.safetensors"}}"#, &[x, y], &["`a`"]),
        ("listed twice", r#"{"weight_map": {"a": "x.safetensors", "a": "x.safetensors"}}"#, &[x], &["`a`", "twice"]),
        ("parent", r#"{"weight_map": {"a": "../x.safetensors"}}"#, &[x], &["`a`", ".."]),
        ("absolute", r#"{"weight_map": {"a": "/etc/x.safetensors"}}"#, &[x], &["`a`", "/etc"]),
        ("inner path", r#"{"weight_map": {"a": "d/../x.safetensors"}}"#, &[x], &["`a`"]),
        ("this directory", r#"{"weight_map": {"a": "./x.safetensors"}}"#, &[x], &["`a`"]),
        ("backslash", r#"{"weight_map": {"a": "..\\x.safetensors"}}"#, &[x], &["`a`"]),
        ("other file type", r#"{"weight_map": {"a": "config.json"}}"#, &[x], &["`a`", "config.json"]),
        ("number", r#"{"weight_map": {"a": 7}}"#, &[x], &["JSON"]),
        ("no map", "{}", &[x], &["weight_map"]),
        ("not JSON", "weight_map", &[x], &["JSON"]),
        ("empty", "", &[x], &["empty"]),
    ];
    for (what, index, shards, words) in cases {
        let mut files = vec![(INDEX, index.as_bytes())];
        files.extend(*shards);
        refused(what, &files, words);
    }
    refused(
        "garbage shard",
        &[x, (INDEX, br#"{"weight_map": {"a": "x.safetensors", "b": "y.safetensors"}}"#), ("y.safetensors", b"junk")],
        &["y.safetensors"],
    );
}

#[test]
fn directories_without_a_model_are_refused() {
    let e = Checkpoint::open("no/such/model").unwrap_err();
    assert!(e.to_string().contains("no/such/model: no such directory"), "{e}");
    let e = Checkpoint::open(example().join("config.json")).unwrap_err();
    assert!(e.message.contains("not a directory") && e.help.ends_with("sdar-tiny"), "{e}");
    refused("no weights", &[], &["*.safetensors", "download"]);
    refused("pickle", &[("pytorch_model.bin", b"")], &["pickles (pytorch_model.bin)", "save_file"]);
    refused("config not JSON", &[("config.json", b"hidden_size = 3")], &["config.json", "JSON"]);
    refused("config empty", &[("config.json", b"")], &["config.json", "empty"]);
    refused("config a list", &[("config.json", b"[]")], &["config.json"]);
    refused("config not UTF-8", &[("config.json", b"{\"\xff\": 1}")], &["config.json"]);
    refused("config nested deeply", &[("config.json", "[".repeat(100_000).as_bytes())], &["config.json"]);
    let d = tempfile::tempdir().unwrap();
    assert!(Checkpoint::open(d.path()).unwrap_err().to_string().contains("config.json: the file is missing"));
}

#[test]
fn wrong_config_values_are_named() {
    let path = Path::new("m/config.json");
    let c = |text: &str| Config::from_json(path, text.as_bytes()).unwrap();
    for (value, found) in [
        ("1000000000000", "1000000000000"),
        ("1025", "1025"),
        ("0", "0"),
        ("-4", "-4"),
        ("28.0", "28.0"),
        ("28.5", "28.5"),
        ("\"28\"", "\"28\""),
        ("true", "true"),
        ("[28]", "[28]"),
        ("{\"n\": 28}", "{\"n\":28}"),
        ("1e300", "1e+300"),
        ("18446744073709551616", "1.8446744073709552e+19"),
    ] {
        let e = c(&format!("{{\"num_hidden_layers\": {value}}}")).usize("num_hidden_layers").unwrap_err();
        assert_eq!(e.place, "m/config.json: `num_hidden_layers`");
        assert!(e.message.starts_with("must be an integer from 1 to 1024, found "), "{e}");
        assert!(e.message.contains(found), "{e}");
    }
    let empty = c("{\"num_hidden_layers\": null}");
    assert_eq!(empty.opt_usize("num_hidden_layers").unwrap(), None);
    assert!(empty.usize("num_hidden_layers").unwrap_err().message.contains("missing"));
    for bad in ["0", "-1e-6", "\"1e-6\"", "null", "[]"] {
        assert!(c(&format!("{{\"rms_norm_eps\": {bad}}}")).f64("rms_norm_eps").is_err(), "{bad}");
    }
    for bad in ["-1", "4194304", "1.5", "\"<mask>\"", "{}"] {
        let c = c(&format!("{{\"mask_token_id\": {bad}}}"));
        assert!(c.opt_token("mask_token_id").is_err() && c.tokens("mask_token_id").is_err(), "{bad}");
    }
    assert!(c("{\"eos_token_id\": [1, -1]}").tokens("eos_token_id").is_err());
    assert_eq!(c("{\"eos_token_id\": 7}").tokens("eos_token_id").unwrap(), [7]);
    assert!(c("{\"x\": 1}").opt_bool("x").is_err());
    assert!(c("{\"x\": 1}").str("x").is_err());
    let nested = c("{\"rope_parameters\": {\"rope_theta\": \"big\"}}").object("rope_parameters").unwrap().unwrap();
    let e = nested.f64("rope_theta").unwrap_err();
    assert_eq!(e.place, "m/config.json: `rope_parameters.rope_theta`");
    let long = format!("{{\"vocab_size\": \"{}\"}}", "é".repeat(10_000));
    assert!(c(&long).usize("vocab_size").unwrap_err().message.len() < 400);
}

#[test]
fn text_files_are_found() {
    let t = TextFiles::read(&example()).unwrap();
    assert!(t.chat_template.unwrap().contains("<|im_start|>"));
    assert_eq!(t.special_tokens["mask_token"], "<|MASK|>");
    assert_eq!(t.special_tokens.get("bos_token"), None);

    let config = br#"{"mask_token": {"content": "<|MASK|>"}, "chat_template":
        [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]}"#;
    let map = br#"{"mask_token": "<MASK>", "eos_token": "</s>"}"#;
    let d = dir(&[("tokenizer.json", b"{}"), ("tokenizer_config.json", config), ("special_tokens_map.json", map)]);
    let t = TextFiles::read(d.path()).unwrap();
    assert_eq!(t.chat_template.as_deref(), Some("D"));
    assert_eq!(t.special_tokens["mask_token"], "<|MASK|>");
    assert_eq!(t.special_tokens["eos_token"], "</s>");

    fs::write(d.path().join("chat_template.jinja"), "J").unwrap();
    assert_eq!(TextFiles::read(d.path()).unwrap().chat_template.as_deref(), Some("J"));
}

#[test]
fn broken_text_files_are_refused() {
    let cases: &[(&[Named], &[&str])] = &[
        (&[], &["tokenizer.json", "missing", "download"]),
        (&[("vocab.json", b"{}")], &["tokenizer_config.json", "names the class"]),
        (&[("tokenizer.model", b"")], &["tokenizer.json", "tokenizer.model", "download"]),
        (&[("tokenizer.json", b"")], &["tokenizer.json", "empty"]),
        (&[("tokenizer.json", b"{\"model\": ")], &["tokenizer.json", "JSON"]),
        (&[("tokenizer.json", b"{}"), ("tokenizer_config.json", b"x")], &["tokenizer_config.json"]),
        (&[("tokenizer.json", b"{}"), ("special_tokens_map.json", b"[]")], &["special_tokens_map.json"]),
        (&[("tokenizer.json", b"{}"), ("chat_template.jinja", b"\xff")], &["chat_template.jinja", "UTF-8"]),
        (&[("tokenizer.json", b"{}"), ("tokenizer_config.json", b"{\"chat_template\": 1}")], &["chat_template"]),
    ];
    for (files, words) in cases {
        let d = dir(files);
        let e = TextFiles::read(d.path()).unwrap_err();
        for word in *words {
            assert!(e.to_string().contains(word), "`{word}` not in {e}");
        }
    }
}

#[test]
fn no_damage_to_a_header_panics() {
    let whole = file(&format!("{}, {}", &A[..A.len() - 1], B[1..].replace("0, 4", "12, 16")), 16);
    let d = dir(&[("model.safetensors", &whole)]);
    let path = d.path().join("model.safetensors");
    assert!(Shard::open(&path, None).is_ok());
    for len in 0..whole.len() {
        fs::write(&path, &whole[..len]).unwrap();
        assert!(Shard::open(&path, None).is_err(), "{len}");
    }
    let mut bytes = whole;
    for i in 0..bytes.len() - 16 {
        for bit in 0..8 {
            bytes[i] ^= 1 << bit;
            fs::write(&path, &bytes).unwrap();
            if let Ok((shard, entries)) = Shard::open(&path, None) {
                assert_eq!(entries.iter().map(|(_, e)| shard.bytes(e).len()).sum::<usize>(), 16);
            }
            bytes[i] ^= 1 << bit;
        }
    }
}
