//! Arrays there and back, what NumPy itself writes, and files that lie.

use std::io::{Cursor, Write as _};
use std::path::Path;

use dlx_ir::{DType, Data, Tensor};
use dlx_runtime::graph::Tensors;

use super::{ArrayFile, npy, write};

fn all(path: &Path) -> Result<Tensors, String> {
    let mut file = ArrayFile::open(path).map_err(|e| e.to_string())?;
    let arrays = file.arrays().to_vec();
    let read = |(i, a): (usize, super::Array)| Ok((a.name, file.read(i).map_err(|e| e.to_string())?));
    arrays.into_iter().enumerate().map(read).collect()
}

fn some() -> Tensors {
    let tensor = |dtype, shape: &[usize], data| Tensor { dtype, shape: shape.to_vec(), data };
    Tensors::from([
        ("f32".into(), Tensor::f32(&[2, 3], vec![1.0, -2.5, f32::INFINITY, 0.0, 1e-40, 3.0])),
        ("f16".into(), tensor(DType::F16, &[2], Data::F32(vec![0.5, 65504.0]))),
        ("f64".into(), tensor(DType::F64, &[], Data::F64(vec![1e300]))),
        ("i64/x::y".into(), Tensor::i64(&[3], vec![i64::MIN, 0, i64::MAX])),
        ("i32".into(), Tensor::i32(&[1, 1], vec![-7])),
        ("u8".into(), tensor(DType::U8, &[2], Data::I64(vec![0, 255]))),
        ("bool".into(), tensor(DType::Bool, &[3], Data::Bool(vec![true, false, true]))),
    ])
}

#[test]
fn arrays_come_back() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a.npz", "a.safetensors"] {
        let path = dir.path().join(name);
        std::fs::write(&path, "an older file").unwrap();
        write(&path, &some()).unwrap();
        assert_eq!(all(&path).unwrap(), some(), "{name}");
    }
    let path = dir.path().join("a.npy");
    for (_, t) in some() {
        write(&path, &Tensors::from([("x".into(), t.clone())])).unwrap();
        assert_eq!(all(&path).unwrap()[""], t);
    }
    assert!(write(&path, &some()).unwrap_err().to_string().contains("holds one array, not 7"));
    let bf16 = Tensors::from([("x".into(), Tensor { dtype: DType::BF16, shape: vec![1], data: Data::F32(vec![1.5]) })]);
    assert!(write(&dir.path().join("b.npz"), &bf16).unwrap_err().to_string().contains(".safetensors"));
    let path = dir.path().join("b.safetensors");
    write(&path, &bf16).unwrap();
    assert_eq!(all(&path).unwrap(), bf16);
    assert!(write(&dir.path().join("c.txt"), &some()).unwrap_err().help.contains(".npz"));
    let mut names: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["a.npy", "a.npz", "a.safetensors", "b.safetensors"]);
}

/// A file of one array with this dictionary and these elements.
fn array(dictionary: &str, elements: &[u8]) -> Vec<u8> {
    let len = u16::try_from(dictionary.len()).unwrap().to_le_bytes();
    [npy::MAGIC, &[1, 0], &len, dictionary.as_bytes(), elements].concat()
}

fn zipped(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
    for (name, bytes) in members {
        zip.start_file(*name, options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

#[test]
fn compressed_members_are_read() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let ids = array(
        "{'descr': '<i8', 'fortran_order': False, 'shape': (2,), }\n",
        &[1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0],
    );
    std::fs::write(file.path(), zipped(&[("ids.npy", &ids)])).unwrap();
    assert_eq!(all(file.path()).unwrap()["ids"], Tensor::i64(&[2], vec![1, 2]));
}

#[test]
fn files_that_lie_are_errors() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = |bytes: &[u8]| {
        std::fs::write(file.path(), bytes).unwrap();
        all(file.path()).unwrap_err()
    };
    for (dictionary, message) in [
        ("{'descr': '>f4', 'fortran_order': False, 'shape': (1,), }", "is big-endian"),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", "elements of type '|O'"),
        ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }", "structured"),
        ("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 2), }", "by columns"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }", "not NumPy's"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296), }", "larger than any file"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1152921504606846975,), }", "ends after 4 of"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", "ends after 4 of 8 bytes"),
        ("{'descr': '|i1', 'fortran_order': False, 'shape': (3,), }", "goes on after its 3 bytes"),
        ("{'descr': '<f4'}", "not NumPy's"),
        ("'descr'", "not NumPy's"),
    ] {
        let bytes = array(dictionary, &[0; 4]);
        assert!(error(&bytes).contains(message), "{dictionary}: {}", error(&bytes));
        let zip = zipped(&[("x.npy", &bytes)]);
        assert!(error(&zip).contains(message) && error(&zip).contains("`x`"), "{dictionary}: {}", error(&zip));
    }
    assert!(error(b"").contains("is no file of arrays"));
    assert!(error(b"PK\x03\x04").contains("is no sound zip file"));
    assert!(error(b"\x93NUMPY\x02\x00\xff\xff\xff\xff").contains("not NumPy's"));
    assert!(error(&zipped(&[("readme.txt", b"hello")])).contains("`readme.txt` is no .npy array"));
    // A file of zeros as large as a disk, in a few kilobytes.
    let mut bomb = array("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }", &[0; 4]);
    bomb.resize(64 << 20, 0);
    assert!(error(&zipped(&[("x.npy", &bomb)])).contains("goes on after its 4 bytes"));
    // Any sound file, cut anywhere.
    let whole = zipped(&[("x.npy", &array("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }", &[0; 4]))]);
    for end in 0..whole.len() {
        error(&whole[..end]);
    }
}
