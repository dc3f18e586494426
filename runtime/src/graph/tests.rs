//! Choosing, running and refusing graphs.

use std::sync::atomic::AtomicBool;

use dlx_ir::{DType, Data, Tensor, VerifiedModule, parse};

use super::*;

const MODULE: &str = "module @m {
  weight @table: f32[3, 2] = [1, 0, 0, 1, 2, 2]
  weight @w: f32[2, 2] = [1, 2, 3, 4]
  weight @b: f32[2] = [0.5, -0.5]
  graph @short(%ids: i32[2]) -> (f32[2, 2], f32[2, 2]) {
    %x = embed %ids, @table: f32[2, 2]
    %y = linear %x, @w, @b {bias}: f32[2, 2]
    %z = matmul %x, %y: f32[2, 2]
    return %y, %z
  }
  graph @long(%ids: i32[4]) -> (f32[4, 2], f32[4, 2]) {
    %x = embed %ids, @table: f32[4, 2]
    %y = linear %x, @w: f32[4, 2]
    %s = silu %y: f32[4, 2]
    return %y, %y
  }
}";

fn signatures(module: &VerifiedModule, outputs: &[&str]) -> Vec<Signature> {
    let outputs: Vec<String> = outputs.iter().map(|o| (*o).to_owned()).collect();
    let inputs = |g: &dlx_ir::Graph| g.params.iter().map(|p| g.values[*p].name.clone()).collect::<Vec<_>>();
    module.graphs.iter().map(|g| Signature::of(g, &inputs(g), &outputs).unwrap()).collect()
}

fn load(text: &str, outputs: &[&str], options: &GraphOptions) -> Result<GraphModel, GraphError> {
    let module = VerifiedModule::new(parse(text).unwrap()).unwrap();
    let entries = signatures(&module, outputs);
    GraphModel::new(module, entries, &[], options)
}

fn model() -> GraphModel {
    load(MODULE, &["first", "second"], &GraphOptions::default()).unwrap()
}

fn ids(ids: &[i32]) -> Tensors {
    Tensors::from([("ids".into(), Tensor::i32(&[ids.len()], ids.to_vec()))])
}

#[test]
fn the_shapes_of_the_inputs_choose_the_graph() {
    let model = model();
    let short = model.run(&ids(&[0, 2])).unwrap();
    assert_eq!(short["first"], Tensor::f32(&[2, 2], vec![1.5, 2.5, 6.5, 13.5]));
    assert_eq!(short["second"], Tensor::f32(&[2, 2], vec![1.5, 2.5, 16.0, 32.0]));
    let long = model.run(&ids(&[0, 1, 1, 0])).unwrap();
    assert_eq!(long["first"], Tensor::f32(&[4, 2], vec![1.0, 3.0, 2.0, 4.0, 2.0, 4.0, 1.0, 3.0]));
    assert_eq!(long["first"], long["second"]);
    let text: Vec<_> = model.entries().iter().map(ToString::to_string).collect();
    assert_eq!(text[1], "long(ids: i32[4]) -> (first: f32[4, 2], second: f32[4, 2])");
    assert_eq!(model.entry_for(&[("ids", DType::I32, &[4])]).unwrap().name, "long");
}

#[test]
fn inputs_that_no_graph_takes_are_named() {
    let model = model();
    let error = |inputs: &Tensors| model.run(inputs).unwrap_err().to_string();
    let wrong = error(&ids(&[0; 3]));
    assert!(wrong.contains("input `ids` is i32[3], but must be i32[2] or i32[4]"), "{wrong}");
    assert!(wrong.contains("short(ids: i32[2]) -> (first: f32[2, 2], second: f32[2, 2])"), "{wrong}");
    assert!(error(&Tensors::new()).contains("input `ids: i32[2]` is missing"));
    let mut more = ids(&[0, 0]);
    more.insert("mask".into(), Tensor::i32(&[1], vec![1]));
    assert!(error(&more).contains("there is no input `mask`"));
    let floats = Tensors::from([("ids".into(), Tensor::f32(&[2], vec![0.0; 2]))]);
    assert!(error(&floats).contains("input `ids` is f32[2], but must be i32[2]"));
    let hollow = Tensors::from([("ids".into(), Tensor::i32(&[2], vec![0]))]);
    assert!(error(&hollow).contains("do not fill its type and shape"));
    let other =
        Tensors::from([("ids".into(), Tensor { dtype: DType::I32, shape: vec![2], data: Data::I64(vec![0; 2]) })]);
    assert!(error(&other).contains("do not fill its type and shape"));
    let beyond = error(&ids(&[0, 3]));
    assert!(beyond.contains("%x = embed %ids, @table") && beyond.contains("there is no token 3"), "{beyond}");
    let stopped = model.run_until(&ids(&[0, 0]), &AtomicBool::new(true)).unwrap_err();
    assert!(matches!(stopped, GraphError::Interrupted));
}

#[test]
fn memory_is_known_before_it_is_used() {
    let memory = model().memory();
    // Weights are 12 numbers. Values are most in the product of the second graph: %ids, %x and %y, and to work in %x and
    // %y again.
    assert_eq!((memory.weights, memory.values), (12 * 4, (4 + 8 + 8 + 8 + 8) * 4));
}

#[test]
fn a_program_that_is_too_large_is_an_error() {
    let limit = GraphOptions { memory: 100, ..GraphOptions::default() };
    let error = load(MODULE, &["first", "second"], &limit).err().unwrap().to_string();
    assert!(error.contains("bytes of weights and values are needed, the limit is 100"), "{error}");
    let n = 1u64 << 45;
    let huge = format!("module @m {{ graph @g(%x: f32[{n}]) -> (f32[{n}]) {{ %y = silu %x: f32[{n}] return %y }} }}");
    let error = load(&huge, &["y"], &GraphOptions::default()).err().unwrap().to_string();
    assert!(error.contains("the limit is 8589934592"), "{error}");
    let all = GraphOptions { memory: u64::MAX, ..GraphOptions::default() };
    assert!(load(&huge, &["y"], &all).err().unwrap().to_string().contains("the system does not have them"));
    let n = 1u64 << 60;
    let more = format!("module @m {{ graph @g(%x: f32[{n}]) -> (f32[{n}]) {{ %y = silu %x: f32[{n}] return %y }} }}");
    assert!(load(&more, &["y"], &all).is_err());
}

#[test]
fn only_pure_programs_of_known_sizes_run() {
    for (text, message) in [
        ("module @m { }", "at least one graph"),
        ("module @m { state @s: f32[2, 2] graph @g() -> () { return } }", "no states"),
        ("module @m { graph @g(%x: f32[T]) -> (f32[T]) { return %x } }", "whose size is not known"),
        ("module @m { weight @w: f32[2] graph @g() -> () { return } }", "@w is not stored"),
        (
            "module @m { weight @w: f32[2] = stored {offset=0, bytes=8} graph @g() -> () { return } }",
            "outside the weights",
        ),
    ] {
        let module = VerifiedModule::new(parse(text).unwrap()).unwrap();
        let error = GraphModel::new(module, Vec::new(), &[], &GraphOptions::default()).err().unwrap().to_string();
        assert!(error.contains(message), "{text}: {error}");
    }
}

#[test]
fn recorded_results_are_found_again_and_others_are_not() {
    let model = model();
    let vectors = model.record();
    assert!(vectors.missing(model.entries()).is_empty());
    golden::check(&model, &vectors).unwrap();
    let text = serde_json::to_string(&vectors).unwrap();
    let again: GraphVectors = serde_json::from_str(&text).unwrap();
    assert_eq!(again, vectors);
    // Ids of 1 are rows of the table, so the first product is (2.5, 3.5).
    let wrong: GraphVectors = serde_json::from_str(&text.replace("2.5", "2.6")).unwrap();
    let error = golden::check(&model, &wrong).unwrap_err().to_string();
    assert!(error.contains("short gives 2.5 in first where 2.6 was recorded"), "{error}");
    let other = serde_json::from_str(&text.replace("short", "shirt")).unwrap();
    assert!(golden::check(&model, &other).unwrap_err().to_string().contains("do not belong"));
}

#[test]
fn a_table_of_one_row_is_recorded_with_zeros() {
    let text = "module @m { weight @t: f32[1, 2] = [1, 2] graph @g(%i: i32[1]) -> (f32[1, 2]) {
        %x = embed %i, @t: f32[1, 2] return %x } }";
    let model = load(text, &["x"], &GraphOptions::default()).unwrap();
    let vectors = model.record();
    assert!(vectors.missing(model.entries()).is_empty());
    golden::check(&model, &vectors).unwrap();
}
