//! Every way to damage a small artifact must be noticed.

use super::*;
use proptest::prelude::*;

/// A file with these sections, laid out and summed as the format asks.
fn build(contents: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; PAGE];
    let mut sections = Vec::new();
    for (name, content) in contents {
        let offset = place(name, bytes.len() as u64).unwrap();
        bytes.resize(offset as usize, 0);
        bytes.extend_from_slice(content);
        let hash = *blake3::hash(content).as_bytes();
        sections.push(Section { name: name.to_string(), offset, len: content.len() as u64, hash });
    }
    bytes[..PAGE].copy_from_slice(&encode(&sections).unwrap());
    bytes
}

fn small() -> Vec<u8> {
    build(&[
        (WEIGHTS, &[7; 100]),
        (MANIFEST, b"{}"),
        ("program:cpu", b"module @m {\n}\n"),
        (TOKENIZER, b""),
        (GOLDEN, &[1, 2, 3]),
    ])
}

/// The two checks that a careful user makes: structure, then weights.
fn accepts(bytes: &[u8]) -> bool {
    let path = Path::new("small.dlxa");
    check(bytes, path).is_ok_and(|sections| {
        sections
            .iter()
            .filter(|s| s.name == WEIGHTS)
            .all(|s| check_hash(slice(bytes, s).expect("checked"), s, path).is_ok())
    })
}

/// The page with its checksum made right again after an edit.
fn resum(bytes: &mut [u8]) {
    bytes[24..56].fill(0);
    let sum = blake3::hash(&bytes[..PAGE]);
    bytes[24..56].copy_from_slice(sum.as_bytes());
}

#[test]
fn opens_and_gives_back_what_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.dlxa");
    std::fs::write(&path, small()).unwrap();
    let a = Artifact::open(&path).unwrap();
    a.verify_weights().unwrap();
    assert_eq!(a.weights(), [7; 100]);
    assert_eq!(a.weights().as_ptr() as usize % PAGE, 0);
    assert_eq!(a.text("program:cpu").unwrap(), "module @m {\n}\n");
    assert_eq!(a.section(TOKENIZER), Some(&b""[..]));
    assert_eq!(a.section("program:npu"), None);
    let missing = a.text(&program_section("npu")).unwrap_err().to_string();
    assert!(missing.contains("a.dlxa") && missing.contains("program:npu") && missing.contains("program:cpu"));
    let (file, range) = a.mapped_weights();
    drop(a);
    assert_eq!(&file.bytes()[range], [7; 100]);
}

#[test]
fn weights_are_optional_and_no_sections_is_fine() {
    assert!(accepts(&build(&[])));
    assert!(accepts(&build(&[(MANIFEST, b"{}")])));
}

#[test]
fn every_truncation_is_noticed() {
    let whole = small();
    assert!(accepts(&whole));
    for len in 0..whole.len() {
        let error = check(&whole[..len], Path::new("cut.dlxa")).unwrap_err();
        assert!(matches!(error, ArtifactError::Truncated { .. }), "{len}: {error}");
        assert!(error.to_string().starts_with("cut.dlxa: truncated: "), "{error}");
    }
}

#[test]
fn every_flipped_bit_is_noticed() {
    let mut bytes = small();
    for i in 0..bytes.len() {
        for bit in 0..8 {
            bytes[i] ^= 1 << bit;
            assert!(!accepts(&bytes), "byte {i} bit {bit}");
            bytes[i] ^= 1 << bit;
        }
    }
    assert!(accepts(&bytes));
}

#[test]
fn trailing_bytes_other_files_and_other_versions_are_named() {
    let path = Path::new("x.dlxa");
    let mut bytes = small();
    bytes.push(0);
    assert!(matches!(check(&bytes, path), Err(ArtifactError::TrailingBytes { extra: 1, .. })));
    assert!(matches!(check(b"PK\x03\x04", path), Err(ArtifactError::NotAnArtifact { .. })));
    assert!(matches!(check(&[0; 10_000], path), Err(ArtifactError::NotAnArtifact { .. })));
    let mut bytes = small();
    bytes[8] = 9;
    assert!(matches!(check(&bytes, path), Err(ArtifactError::Version { found: 9, .. })));
}

#[test]
fn lies_under_a_valid_checksum_are_noticed() {
    let row = |i: usize| 64 + 96 * i;
    let lies: [(&str, usize, &[u8]); 11] = [
        ("count", 12, &u32::MAX.to_le_bytes()),
        ("fewer", 12, &4u32.to_le_bytes()),
        ("more", 12, &6u32.to_le_bytes()),
        ("file length", 16, &u64::MAX.to_le_bytes()),
        ("reserved", 60, &[1]),
        ("end of page", PAGE - 1, &[1]),
        ("offset", row(1) + 48, &64u64.to_le_bytes()),
        ("unaligned weights", row(0) + 48, &4160u64.to_le_bytes()),
        ("huge length", row(4) + 56, &u64::MAX.to_le_bytes()),
        ("same name", row(1), b"weights\0"),
        ("bytes after the name", row(0) + 40, b"x"),
    ];
    for (what, at, patch) in lies {
        let mut bytes = small();
        bytes[at..at + patch.len()].copy_from_slice(patch);
        resum(&mut bytes);
        assert!(matches!(check(&bytes, Path::new("x")), Err(ArtifactError::Damaged { .. })), "{what}");
    }
}

#[test]
fn the_writer_cannot_encode_a_bad_table() {
    let section = |name: &str, offset, len| Section { name: name.into(), offset, len, hash: [0; 32] };
    assert!(encode(&[section("a", 4096, 1), section("b", 4160, 0)]).is_ok());
    assert!(encode(&[section("a", 4096, 65), section("b", 4160, 0)]).is_err());
    assert!(encode(&[section("", 4096, 1)]).is_err());
    assert!(encode(&[section(&"n".repeat(MAX_NAME + 1), 4096, 1)]).is_err());
    assert!(encode(&[section("a b", 4096, 1)]).is_err());
    let many: Vec<_> = (0..=MAX_SECTIONS).map(|i| section(&format!("s{i}"), 4096, 0)).collect();
    assert!(encode(&many).is_err());
    assert!(encode(&many[1..]).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn garbage_never_panics_or_passes(mut bytes in proptest::collection::vec(any::<u8>(), 0..9000), keep in 0usize..64) {
        prop_assert!(!accepts(&bytes));
        let whole = small();
        let keep = keep.min(bytes.len());
        bytes[..keep].copy_from_slice(&whole[..keep]);
        prop_assert!(!accepts(&bytes));
        if bytes.len() >= PAGE {
            resum(&mut bytes);
            prop_assert!(!accepts(&bytes));
        }
    }

    #[test]
    fn any_sections_round_trip(contents in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..8)) {
        let names: Vec<String> = (0..contents.len()).map(|i| if i == 1 { WEIGHTS.into() } else { format!("s{i}") }).collect();
        let pairs: Vec<_> = names.iter().zip(&contents).map(|(n, c)| (n.as_str(), c.as_slice())).collect();
        let bytes = build(&pairs);
        let sections = check(&bytes, Path::new("x")).unwrap();
        for (section, content) in sections.iter().zip(&contents) {
            prop_assert_eq!(slice(&bytes, section), Some(content.as_slice()));
        }
        prop_assert!(accepts(&bytes));
    }
}
