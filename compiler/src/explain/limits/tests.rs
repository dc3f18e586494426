//! Limits are read back as they were written, refused when no machine can have them, and interpolated as they say.

use super::*;

/// Limits with round numbers: 100 GB/s from caches, 10 from memory; int4 products at 200 and 40 GOPS at one row, int8 at
/// 100 and 20, and ten times that at 512; attention at 50 GFLOPS; 2 µs per region.
pub(in crate::explain) fn round() -> Machine {
    let product = |weights: &str, rows, gops| Product {
        weights: weights.into(),
        rows,
        cached_gops: gops,
        streamed_gops: gops / 5.0,
    };
    let value = |op: &str, ns| PerValue { op: op.into(), rows: 1, ns };
    let attention = |cache: &str| Attention {
        cache: cache.into(),
        rows: 1,
        cached_gflops: 50.0,
        streamed_gflops: 25.0,
        row_ns: 10.0,
    };
    let ops = [
        "embed",
        "rope_table",
        "rope",
        "kv_write",
        "kv_write to memory",
        "rms_norm",
        "add",
        "scale",
        "swiglu",
        "statistics",
    ];
    let limits = Limits {
        threads: 2,
        region_us: 2.0,
        reads: vec![
            Reading { bytes: 1 << 20, gbs: 100.0 },
            Reading { bytes: 1 << 24, gbs: 80.0 },
            Reading { bytes: 1 << 28, gbs: 10.0 },
        ],
        linear: vec![
            product("q4g32", 1, 200.0),
            product("q4g32", 512, 2000.0),
            product("q8", 1, 100.0),
            product("q8", 512, 1000.0),
        ],
        prepare: vec![value("int8", 0.5), value("float", 0.25)],
        attention: vec![attention("f16"), attention("q8")],
        rows: ops.into_iter().map(|op| value(op, 1.0)).collect(),
    };
    Machine { version: VERSION, cpu: "made up".into(), isa: "scalar".into(), cores: 2, limits: vec![limits] }
}

fn read(text: &str) -> Result<Machine, String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    Machine::read(file.path()).map_err(|e| e.to_string())
}

#[test]
fn what_is_written_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new").join("machine.json");
    round().write(&path).unwrap();
    assert_eq!(Machine::read(&path).unwrap(), round());
    let names: Vec<_> = std::fs::read_dir(path.parent().unwrap()).unwrap().collect();
    assert_eq!(names.len(), 1, "no temporary file is left");
}

#[test]
fn broken_files_are_refused_with_what_is_wrong() {
    let good = serde_json::to_string(&round()).unwrap();
    assert_eq!(read(&good).unwrap(), round());
    for (from, to, message) in [
        (r#""version":1"#, r#""version":7"#, "limits of version 7, and this dlxc reads version 1"),
        (r#""version":1,"#, "", "missing field `version`"),
        (r#""region_us":2.0"#, r#""region_us":0.0"#, "limits of 2 threads: region_us: 0 is not a positive number"),
        (r#""gbs":80.0"#, r#""gbs":-80.0"#, "reads of 16777216 bytes: -80 is not a positive number"),
        (r#""ns":0.5"#, r#""ns":NaN"#, "is no file of a machine's limits"),
        (r#""ns":0.5"#, r#""ns":null"#, "is no file of a machine's limits"),
        (r#""ns":0.5"#, r#""ns":1e999"#, "is no file of a machine's limits"),
        (
            r#""rows":512,"cached_gops":2000.0"#,
            r#""rows":0,"cached_gops":2000.0"#,
            "linear q4g32 of 0 rows: is of nothing",
        ),
        (r#""threads":2"#, r#""threads":0"#, "not 1 to 1024"),
        (r#""cores":2"#, r#""cores":2,"cares":3"#, "unknown field `cares`"),
        (r#""prepare":["#, r#""prepare":[],"x":["#, "is no file of a machine's limits"),
    ] {
        let text = good.replacen(from, to, 1);
        assert_ne!(text, good, "{from} stands in the file");
        let error = read(&text).unwrap_err();
        assert!(error.contains(message) && error.contains("--measure"), "{to}: {error}");
    }
    let mut twice = round();
    twice.limits.push(twice.limits[0].clone());
    assert!(read(&serde_json::to_string(&twice).unwrap()).unwrap_err().contains("given twice"));
    let mut empty = round();
    empty.limits[0].attention.clear();
    assert!(read(&serde_json::to_string(&empty).unwrap()).unwrap_err().contains("a list is empty"));
    let long = " ".repeat(2 << 20);
    assert!(read(&long).unwrap_err().contains("more than 1048576 bytes"));
    assert!(read("").unwrap_err().contains("is no file of a machine's limits"));
    assert!(Machine::read(Path::new("no such file")).unwrap_err().to_string().contains("cannot be read"));
}

#[test]
fn times_lie_on_lines_between_what_was_measured() {
    let points = || [(4, 8.0), (1, 2.0), (8, 10.0)].into_iter();
    for (rows, time) in [(0, 2.0), (1, 2.0), (2, 4.0), (4, 8.0), (6, 9.0), (8, 10.0), (16, 20.0)] {
        assert_eq!(curve(points(), rows), Some(time), "{rows} rows");
    }
    assert_eq!(curve(std::iter::empty(), 3), None);
}

#[test]
fn caches_end_where_reading_slows_down() {
    let machine = round();
    let limits = machine.of(2).unwrap();
    // The scale's middle between 100 and 10 is 31.6.
    assert_eq!(limits.cache_bytes(), 1 << 24);
    assert_eq!([1000, 1 << 22, (1 << 24) + 1].map(|b| limits.read_gbs(b)), [100.0, 80.0, 10.0]);
    let one = Limits { reads: vec![Reading { bytes: 64, gbs: 5.0 }], ..limits.clone() };
    assert_eq!((one.cache_bytes(), one.read_gbs(8)), (0, 5.0));
}

#[test]
fn limits_that_were_not_measured_are_named() {
    let machine = round();
    let limits = machine.of(2).unwrap();
    assert!(machine.of(3).is_none());
    for (error, what) in [
        (limits.element(DType::F16, 4, Source::Cache).unwrap_err(), "products with f16 weights"),
        (limits.attention(DType::F32, 4, Source::Cache).unwrap_err(), "attention on f32 caches"),
        (limits.value("silu", 4).unwrap_err(), "the op `silu`"),
    ] {
        let text = error.to_string();
        assert!(text.contains("limits of 2 threads") && text.contains(what) && text.contains("--measure"), "{text}");
    }
    // 2 operations per element and row, at 200 GOPS from a cache and at 40 from memory.
    let near = |a: f64, b: f64| assert!((a / b - 1.0).abs() < 1e-9, "{a} {b}");
    let q4 = DType::Quant("q4g32".parse().unwrap());
    near(limits.element(q4, 1, Source::Cache).unwrap(), 2e-9 / 200.0);
    near(limits.element(q4, 512, Source::Memory).unwrap(), 512.0 * 2e-9 / 400.0);
    near(limits.prepare(q4, 9).unwrap(), 0.5e-9);
    near(limits.attention(DType::F16, 9, Source::Memory).unwrap().0, 2e-9 / 25.0);
    near(limits.attention(DType::F16, 9, Source::Cache).unwrap().1, 10e-9);
}
