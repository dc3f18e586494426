//! A whole app around an export: text from graphs that run in somebody else's library.
//!
//! `Library` stands for that library. Here it is dlxc's own graph executor, so that the example runs anywhere: an app for a
//! Qualcomm NPU would hold an ONNX Runtime session (QNN execution provider) or a QNN context for each entry instead, and hand the
//! same bytes to it.
//!
//! ```text
//! dlxc compile examples/models/sdar-tiny --target qnn --profile f16 -o sdar-npu --max-seq 128
//! for f in sdar-npu/*.onnx; do dlxc compile "$f" --graph -o "${f%.onnx}.dlxa"; done
//! cargo run --release -p dlx-examples --bin npu -- sdar-npu "What is the capital of France?"
//! ```
#![allow(clippy::print_stdout, reason = "it is what an example does")]

use std::collections::BTreeMap;
use std::error::Error;
use std::ops::ControlFlow;

use dlx_runtime::graph::{GraphModel, Tensor, Tensors};
use dlx_runtime::host::{Backend, Entry, Export};
use dlx_runtime::session::{Event, Prompt, Request};
use dlx_runtime::text::Message;

/// One loaded graph per entry.
struct Library(BTreeMap<String, GraphModel>);

impl Backend for Library {
    fn run(&mut self, entry: &Entry, inputs: &[Vec<u8>], outputs: &mut [Vec<u8>]) -> Result<(), String> {
        let graph = self.0.get(&entry.name).ok_or("is not loaded")?;
        let mut given = Tensors::new();
        for (port, bytes) in entry.inputs.iter().zip(inputs) {
            given.insert(port.name.clone(), Tensor::from_le_bytes(port.dtype.parse()?, &port.shape, bytes)?);
        }
        let mut made = graph.run(&given).map_err(|e| e.to_string())?;
        for (port, out) in entry.outputs.iter().zip(outputs) {
            *out = made.remove(&port.name).ok_or("lacks an output")?.to_le_bytes();
        }
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dir, prompt] = &args[..] else { return Err("usage: npu EXPORT \"…\"".into()) };
    let export = Export::open(dir)?;
    let mut library = Library(BTreeMap::new());
    for entry in &export.manifest.entries {
        let graph = GraphModel::open(export.file(entry).with_extension("dlxa"))?;
        library.0.insert(entry.name.clone(), graph);
    }
    let mut session = export.session(library)?;
    let messages = vec![Message::new("user", prompt)];
    let request = Request::new(Prompt::Chat { messages, variables: Default::default() }, 64);
    session.generate(&request, &mut |event| {
        if let Event::Text(text) = event {
            print!("{text}");
        }
        ControlFlow::Continue(())
    })?;
    println!();
    Ok(())
}
