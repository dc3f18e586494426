//! Time of an encoder of MiniLM's size (6 layers of 384 features, 12 heads) on the graph executor, by length.
//!
//! `cargo bench -p dlx-runtime --bench graph`. Numbers are random; the norm has no mean to subtract and the activation is
//! SiLU, which costs about what GELU does.
#![allow(clippy::print_stdout, reason = "a benchmark")]
#![allow(clippy::unwrap_used, reason = "a benchmark")]

use std::fmt::Write;
use std::time::Instant;

use dlx_ir::{VerifiedModule, parse};
use dlx_runtime::graph::{GraphModel, GraphOptions, Signature, Tensor, Tensors};

const LAYERS: usize = 6;
const WIDTH: usize = 384;
const INNER: usize = 1536;
const VOCAB: usize = 30522;

/// The module, and how many bytes of weights it reads.
fn encoder(t: usize) -> (String, usize) {
    let (mut weights, mut nodes, mut end) = (String::new(), String::new(), 0);
    let mut weight = |name: &str, dims: &[usize]| {
        let bytes = dims.iter().product::<usize>() * 4;
        let dims: Vec<_> = dims.iter().map(usize::to_string).collect();
        writeln!(weights, "weight @{name}: f32[{}] = stored {{offset={end}, bytes={bytes}}}", dims.join(", ")).unwrap();
        end += bytes;
    };
    weight("embed", &[VOCAB, WIDTH]);
    writeln!(nodes, "%x0 = embed %ids, @embed: f32[{t}, {WIDTH}]").unwrap();
    for l in 0..LAYERS {
        for name in ["q", "k", "v", "o"] {
            weight(&format!("l{l}.{name}"), &[WIDTH, WIDTH]);
        }
        weight(&format!("l{l}.up"), &[INNER, WIDTH]);
        weight(&format!("l{l}.down"), &[WIDTH, INNER]);
        weight(&format!("l{l}.n1"), &[WIDTH]);
        weight(&format!("l{l}.n2"), &[WIDTH]);
        let wide = format!("f32[{t}, {WIDTH}]");
        for name in ["q", "k", "v"] {
            writeln!(nodes, "%{name}{l} = linear %x{l}, @l{l}.{name}: {wide}").unwrap();
        }
        writeln!(nodes, "%a{l} = attention %q{l}, %k{l}, %v{l} {{head_dim=32, mask=full}}: {wide}").unwrap();
        writeln!(nodes, "%o{l} = linear %a{l}, @l{l}.o: {wide}").unwrap();
        writeln!(nodes, "%r{l} = add %o{l}, %x{l}: {wide}").unwrap();
        writeln!(nodes, "%m{l} = rms_norm %r{l}, @l{l}.n1 {{eps=1e-12}}: {wide}").unwrap();
        writeln!(nodes, "%u{l} = linear %m{l}, @l{l}.up: f32[{t}, {INNER}]").unwrap();
        writeln!(nodes, "%g{l} = silu %u{l}: f32[{t}, {INNER}]").unwrap();
        writeln!(nodes, "%d{l} = linear %g{l}, @l{l}.down: {wide}").unwrap();
        writeln!(nodes, "%s{l} = add %d{l}, %m{l}: {wide}").unwrap();
        writeln!(nodes, "%x{} = rms_norm %s{l}, @l{l}.n2 {{eps=1e-12}}: {wide}", l + 1).unwrap();
    }
    let head = format!("graph @encode(%ids: i32[{t}]) -> (f32[{t}, {WIDTH}])");
    (format!("module @encoder {{ {weights} {head} {{ {nodes} return %x{LAYERS} }} }}"), end)
}

fn main() {
    for t in [16, 128, 512] {
        let (text, bytes) = encoder(t);
        let module = VerifiedModule::new(parse(&text).unwrap()).unwrap();
        let number = |i: usize| ((i as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 27) as f32 - 0.0625;
        let section: Vec<u8> = (0..bytes / 4).flat_map(|i| number(i).to_le_bytes()).collect();
        let entry = Signature::of(&module.graphs[0], &["ids".into()], &["hidden".into()]).unwrap();
        let begin = Instant::now();
        let model = GraphModel::new(module, vec![entry], &section, &GraphOptions::default()).unwrap();
        let load = begin.elapsed();
        let ids: Vec<i32> = (0..t as i32).map(|i| i * 7919 % VOCAB as i32).collect();
        let inputs = Tensors::from([("ids".into(), Tensor::i32(&[t], ids))]);
        let mut times: Vec<_> = (0..5)
            .map(|_| {
                let begin = Instant::now();
                model.run(&inputs).unwrap();
                begin.elapsed()
            })
            .collect();
        times.sort();
        println!("{t:>4} tokens: {:>9.1?} (best {:.1?}), loaded in {load:.1?}", times[2], times[0]);
    }
}
