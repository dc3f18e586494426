//! Values in files beside the model: where they may lie, and what is refused.

use std::path::Path;

use prost::Message;

use super::made::{external, holding, says};
use crate::onnx::OnnxModel;
use crate::onnx::proto::TensorProto;

/// A directory with files, given by path and contents.
fn tree(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, bytes) in files {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    dir
}

fn encode(tensors: Vec<TensorProto>) -> Vec<u8> {
    holding(tensors).encode_to_vec()
}

/// The bytes of a tensor of the model at a path, or what is wrong.
fn read(path: &Path, name: &str) -> Result<Vec<u8>, String> {
    let model = OnnxModel::open(path).map_err(|e| e.to_string())?;
    let t = model.tensor(&model.graph().initializers[name]).map_err(|e| e.to_string())?;
    Ok(t.bytes.into_owned())
}

/// Reads tensor `a` of a model with these tensors beside a file `w.bin` of eleven bytes.
fn beside(tensors: Vec<TensorProto>) -> Result<Vec<u8>, String> {
    let dir = tree(&[("m.onnx", &encode(tensors)), ("w.bin", b"0123456789a"), ("sub/v.bin", b"wxyz")]);
    read(&dir.path().join("m.onnx"), "a")
}

#[track_caller]
fn fails(entries: &[(&str, &str)], parts: &[&str]) {
    let text = beside(vec![external("a", &[1], entries)]).expect_err("the tensor is valid");
    says(&text, &[&["m.onnx: tensor \"a\"", "\nhelp: "], parts].concat());
}

#[test]
fn values_lie_anywhere_in_a_file() {
    let one = |entries: &[(&str, &str)]| beside(vec![external("a", &[1], entries)]).unwrap();
    assert_eq!(one(&[("location", "w.bin")]), b"0123");
    assert_eq!(one(&[("location", "w.bin"), ("offset", "7"), ("length", "4")]), b"789a");
    assert_eq!(one(&[("location", "./w.bin"), ("offset", "3"), ("checksum", "x"), ("colour", "blue")]), b"3456");
    assert_eq!(one(&[("location", "sub/v.bin")]), b"wxyz");
    assert_eq!(beside(vec![external("a", &[0], &[("location", "w.bin"), ("offset", "11")])]).unwrap(), b"");
}

#[test]
fn a_record_that_does_not_fit_is_refused() {
    fails(&[], &["does not say in which"]);
    fails(&[("location", "")], &["does not say in which"]);
    fails(&[("location", "w.bin"), ("location", "v.bin")], &["more than one location"]);
    fails(&[("location", "w.bin"), ("offset", "-1")], &["\"-1\" as offset"]);
    fails(&[("location", "w.bin"), ("offset", "+1")], &["\"+1\" as offset"]);
    fails(&[("location", "w.bin"), ("offset", "")], &["\"\" as offset"]);
    fails(&[("location", "w.bin"), ("offset", "99999999999999999999")], &["as offset"]);
    fails(&[("location", "w.bin"), ("offset", "18446744073709551615")], &["which has 11 bytes: 4 are needed"]);
    fails(&[("location", "w.bin"), ("offset", "8")], &["lies at byte 8 of", "which has 11 bytes: 4 are needed"]);
    fails(&[("location", "w.bin"), ("length", "3")], &["length of 3 bytes, FLOAT[1] need 4"]);
    let twice = TensorProto { float_data: vec![1.0], ..external("a", &[1], &[("location", "w.bin")]) };
    says(&beside(vec![twice]).unwrap_err(), &["twice: in another file and in float_data"]);
    let text = TensorProto { data_type: Some(8), ..external("a", &[1], &[("location", "w.bin")]) };
    says(&beside(vec![text]).unwrap_err(), &["keeps strings in another file"]);
}

#[test]
fn a_location_outside_the_folder_is_refused() {
    for location in ["/etc/passwd", "../w.bin", "sub/../w.bin", "sub/../../w.bin", "..", "a\0b"] {
        fails(&[("location", location)], &["which leaves the folder of the model"]);
    }
    fails(&[("location", "x.bin")], &["\"x.bin\", which is not beside the model"]);
    fails(&[("location", "sub")], &["\"sub\", which is no regular file"]);
    fails(&[("location", ".")], &["which is no regular file"]);
}

#[test]
fn tensors_may_share_bytes_but_not_overlap() {
    let at = |name: &str, offset: &str, n: i64| external(name, &[n], &[("location", "w.bin"), ("offset", offset)]);
    assert_eq!(beside(vec![at("a", "0", 1), at("b", "4", 1), at("c", "0", 1)]).unwrap(), b"0123");
    for other in [at("b", "2", 1), at("b", "0", 2)] {
        let text = beside(vec![at("a", "0", 1), other, at("c", "0", 1)]).unwrap_err();
        says(&text, &["tensor \"b\"", "they overlap", "\nhelp: "]);
    }
    // The same file by another spelling is the same file.
    let spelled = external("b", &[1], &[("location", "./w.bin"), ("offset", "1")]);
    says(&beside(vec![at("a", "0", 1), spelled]).unwrap_err(), &["tensor \"a\" at 0 to 4: they overlap"]);
}

#[cfg(unix)]
mod links {
    use std::os::unix::fs::symlink;

    use super::{encode, external, read, says, tree};

    #[test]
    fn a_download_cache_of_links_is_read() {
        let model = encode(vec![external("a", &[1], &[("location", "model.onnx_data"), ("offset", "1")])]);
        let dir = tree(&[("blobs/aaa", &model), ("blobs/bbb", b"01234"), ("snapshots/x/config.json", b"{}")]);
        let snapshot = dir.path().join("snapshots/x");
        symlink("../../blobs/aaa", snapshot.join("model.onnx")).unwrap();
        let path = snapshot.join("model.onnx");
        says(&read(&path, "a").unwrap_err(), &["not beside the model"]);
        symlink("../../blobs/bbb", snapshot.join("model.onnx_data")).unwrap();
        assert_eq!(read(&path, "a").unwrap(), b"1234");
        // Only the model is a link: the data lies where it was named, or where the model is.
        std::fs::remove_file(snapshot.join("model.onnx_data")).unwrap();
        std::fs::write(snapshot.join("model.onnx_data"), b"56789").unwrap();
        assert_eq!(read(&path, "a").unwrap(), b"6789");
        std::fs::rename(snapshot.join("model.onnx_data"), dir.path().join("blobs/model.onnx_data")).unwrap();
        assert_eq!(read(&path, "a").unwrap(), b"6789");
    }

    #[test]
    fn links_that_leave_the_folder_or_lead_nowhere_are_refused() {
        let model = encode(vec![external("a", &[1], &[("location", "w.bin")])]);
        let dir = tree(&[("m/m.onnx", &model), ("m2/w.bin", b"01234"), ("m/v.bin", b"56789")]);
        let (path, link) = (dir.path().join("m/m.onnx"), dir.path().join("m/w.bin"));
        for (to, what) in [
            ("../m2/w.bin", "that leaves the folder of the model"),
            ("/dev/zero", "that leaves the folder of the model"),
            ("gone", "cannot be followed to a file"),
            ("w.bin", "cannot be followed to a file"),
            (".", "is no regular file"),
        ] {
            symlink(to, &link).unwrap();
            says(&read(&path, "a").unwrap_err(), &["m.onnx: tensor \"a\"", "\"w.bin\"", what, "\nhelp: "]);
            std::fs::remove_file(&link).unwrap();
        }
        symlink("v.bin", &link).unwrap();
        assert_eq!(read(&path, "a").unwrap(), b"5678");
        // A folder whose name begins with that of the model's is another folder.
        std::fs::remove_file(&link).unwrap();
        symlink("../m2", dir.path().join("m/sub")).unwrap();
        let model = encode(vec![external("a", &[1], &[("location", "sub/w.bin")])]);
        std::fs::write(&path, model).unwrap();
        says(&read(&path, "a").unwrap_err(), &["that leaves the folder of the model"]);
    }
}
