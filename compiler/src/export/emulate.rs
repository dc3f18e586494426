//! Runs an export on our own ops: what its graphs compute by the definitions of their operators, codes and all.

use std::collections::BTreeMap;

use dlx_ir::{DType, Error, Tensor, VerifiedModule};
use dlx_runtime::graph::{GraphModel, GraphOptions, Signature, Tensors};
use dlx_runtime::host::{Backend, Entry, Export};
use dlx_targets::artifact_writer::ArtifactWriter;
use dlx_targets::emit_plain;

use crate::onnx::{OnnxModel, Plain, plain};

/// The graphs of an export, as imported from its files.
pub struct Emulator {
    graphs: BTreeMap<String, GraphModel>,
}

impl Emulator {
    /// Imports every entry. Shapes are those of the manifest.
    ///
    /// # Errors
    /// A file that cannot be imported, or is not what the manifest says.
    pub fn of(export: &Export) -> Result<Self, Error> {
        let mut graphs = BTreeMap::new();
        for entry in &export.manifest.entries {
            graphs.insert(entry.name.clone(), graph(export, entry)?);
        }
        Ok(Emulator { graphs })
    }
}

fn graph(export: &Export, entry: &Entry) -> Result<GraphModel, Error> {
    let path = export.file(entry);
    let failed = |e: &dyn std::fmt::Display| Error::new(path.display(), e.to_string());
    let model = OnnxModel::open(&path)?;
    let shapes = entry.inputs.iter().map(|port| (port.name.clone(), port.shape.clone())).collect();
    let Plain { module, sources, outputs, .. } = plain(&model, &entry.name, shapes)?;
    let inputs: Vec<String> = entry.inputs.iter().map(|port| port.name.clone()).collect();
    if !outputs.iter().eq(entry.outputs.iter().map(|port| &port.name)) {
        return Err(failed(&"has other outputs than the manifest says"));
    }
    let signature = Signature::of(&module.graphs[0], &inputs, &outputs).map_err(|e| failed(&e))?;
    // The executor reads its weights from a section; this one is gone with the directory.
    let dir = tempfile::tempdir().map_err(|e| failed(&e))?;
    let mut writer = ArtifactWriter::create(&dir.path().join("weights"))?;
    let weights = sources.weights(&model)?;
    let module: VerifiedModule =
        emit_plain(&module, &weights, &mut writer, &std::sync::atomic::AtomicBool::new(false), &|_, _| {})?.module;
    let (file, section) = writer.map_weights()?;
    let section = file.bytes().get(section).unwrap_or_default();
    let options = GraphOptions { memory: u64::MAX, ..GraphOptions::default() };
    GraphModel::new(module, vec![signature], section, &options).map_err(|e| failed(&e))
}

impl Backend for Emulator {
    fn run(&mut self, entry: &Entry, inputs: &[Vec<u8>], outputs: &mut [Vec<u8>]) -> Result<(), String> {
        let graph = self.graphs.get(&entry.name).ok_or("is no graph of the export")?;
        let mut given = Tensors::new();
        for (port, bytes) in entry.inputs.iter().zip(inputs) {
            let dtype: DType = port.dtype.parse()?;
            given.insert(port.name.clone(), Tensor::from_le_bytes(dtype, &port.shape, bytes)?);
        }
        let mut made = graph.run(&given).map_err(|e| e.to_string())?;
        for (port, out) in entry.outputs.iter().zip(outputs) {
            *out = made.remove(&port.name).ok_or("an output is missing")?.to_le_bytes();
        }
        Ok(())
    }
}
