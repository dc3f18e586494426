//! Emission of weights as they are: row by row, little-endian, in their own element types, for graphs that no kernel is
//! chosen for.
//!
//! Invariant: as in `emit.rs`, the bytes depend on the module and the source alone, and memory does not grow with the model,
//! but for weight expressions, whose operands are held whole. Small literals stay in the text, where anybody can read them.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dlx_ir::{Error, Module, Operand, Tensor, Type, VerifiedModule, Weight, WeightDef, WeightId, compute};
use rayon::prelude::*;

use crate::artifact_writer::ArtifactWriter;
use crate::emit::{Emission, WeightSource};

/// Most elements of a literal that stays in the text.
pub const LITERAL_IN_TEXT: usize = 64;

/// Bytes per chunk, about.
const CHUNK_BYTES: usize = 1 << 21;

/// Rows of a source weight, or a whole weight of another kind.
struct Task {
    weight: WeightId,
    rows: Range<usize>,
    offset: u64,
}

/// Writes all weights that graphs read, each in its own element type. `progress` is told bytes done and bytes in all; setting
/// `cancel` stops between chunks.
///
/// # Errors
/// A weight without plain elements, what the source or the writer reports, or cancellation.
pub fn emit_plain(
    module: &VerifiedModule,
    source: &dyn WeightSource,
    writer: &mut ArtifactWriter,
    cancel: &AtomicBool,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Emission, Error> {
    let mut map = module.weights.side_table(None);
    for w in module.graphs.iter().flat_map(|g| &g.nodes).flat_map(|n| &n.inputs).filter_map(|i| i.weight()) {
        map[w] = Some(w);
    }
    let mut stored = Module::new(module.name.clone());
    let mut tasks = Vec::new();
    let mut total = 0;
    for (id, w) in module.weights.iter().filter(|(id, _)| map[*id].is_some()).collect::<Vec<_>>() {
        let def = match &w.def {
            WeightDef::Literal(data) if data.len() <= LITERAL_IN_TEXT => w.def.clone(),
            _ => {
                let bytes = plain_bytes(module, w)?;
                let offset = writer.reserve(bytes);
                total += bytes;
                tasks.extend(chunks(id, w, offset));
                WeightDef::Stored { offset, bytes, shard: None }
            }
        };
        map[id] = Some(stored.weights.push(Weight { def, ..w.clone() }));
    }
    let (done, writer) = (AtomicU64::new(0), &*writer);
    tasks.par_iter().try_for_each(|task| {
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::new("compile", "was interrupted"));
        }
        let bytes = bytes_of(module, task, source)?;
        writer.write_at(task.offset, &bytes)?;
        progress(done.fetch_add(bytes.len() as u64, Ordering::Relaxed) + bytes.len() as u64, total);
        Ok(())
    })?;
    stored.states = module.states.clone();
    stored.graphs = module.graphs.clone();
    for input in stored.graphs.iter_mut().flat_map(|g| &mut g.nodes).flat_map(|n| &mut n.inputs) {
        if let Operand::Weight(w) = input {
            *w = map[*w].expect("read weights are kept");
        }
    }
    let stored = VerifiedModule::new(stored).map_err(Error::first_of)?;
    Ok(Emission { module: stored, bytes: total, recoded: Vec::new() })
}

fn plain_bytes(module: &Module, w: &Weight) -> Result<u64, Error> {
    let bytes = w.ty.bytes().filter(|_| w.ty.layout.is_none()).map(|b| b as u64);
    bytes.ok_or_else(|| {
        Error::new(module.weight_text(w), format!("{} has no plain elements", w.ty))
            .help("a graph runs on weights as they are: leave quantization and packing out")
    })
}

/// The tasks of a weight that lies at `offset`.
fn chunks(id: WeightId, w: &Weight, offset: u64) -> Vec<Task> {
    let (rows, width) = rows(&w.ty);
    let step = if w.def == WeightDef::Source { (CHUNK_BYTES / width.max(1)).max(1) } else { rows };
    let task = |first: usize| Task {
        weight: id,
        rows: first..(first + step).min(rows),
        offset: offset + (first * width) as u64,
    };
    (0..rows).step_by(step).map(task).collect()
}

/// Rows of a type, counted along its first dimension, and bytes of each. A scalar is one row.
fn rows(ty: &Type) -> (usize, usize) {
    let rows = ty.dims.first().and_then(|d| d.fixed()).unwrap_or(1);
    (rows, ty.bytes().unwrap_or(0) / rows)
}

fn bytes_of(module: &Module, task: &Task, source: &dyn WeightSource) -> Result<Vec<u8>, Error> {
    let w = &module.weights[task.weight];
    if w.def != WeightDef::Source {
        return weight(module, task.weight, source).map(|t| t.to_le_bytes());
    }
    let mut bytes = vec![0; task.rows.len() * rows(&w.ty).1];
    source.read_bytes(&w.name, task.rows.clone(), &mut bytes)?;
    source.release_rows(&w.name, task.rows.clone());
    Ok(bytes)
}

/// A whole weight in its own element type, from the source or computed.
///
/// # Errors
/// A weight without plain elements, or what the source reports.
pub fn weight(module: &Module, id: WeightId, source: &dyn WeightSource) -> Result<Tensor, Error> {
    let w = &module.weights[id];
    plain_bytes(module, w)?;
    let shape = w.ty.shape().expect("weights have static dimensions");
    let failed = |e: String| Error::new(module.weight_text(w), e);
    match &w.def {
        WeightDef::Source => {
            let task = Task { weight: id, rows: 0..rows(&w.ty).0, offset: 0 };
            let bytes = bytes_of(module, &task, source)?;
            Tensor::from_le_bytes(w.ty.dtype, &shape, &bytes).map_err(failed)
        }
        WeightDef::Literal(data) => Ok(Tensor { dtype: w.ty.dtype, shape, data: data.clone() }),
        WeightDef::Expr(op, inputs) => {
            let args = inputs.iter().map(|i| weight(module, *i, source)).collect::<Result<Vec<_>, _>>()?;
            let args: Vec<&Tensor> = args.iter().collect();
            let mut results = compute(op, &args).map_err(failed)?;
            results.pop().ok_or_else(|| failed("has no result".into()))
        }
        WeightDef::Stored { .. } => Err(failed("is already stored".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dlx_ir::parse;

    struct Ramp;

    impl WeightSource for Ramp {
        fn read_rows(&self, name: &str, _: Range<usize>, _: &mut [f32]) -> Result<(), Error> {
            Err(Error::new(name, "is read as bytes"))
        }

        fn read_bytes(&self, _: &str, rows: Range<usize>, out: &mut [u8]) -> Result<(), Error> {
            let width = out.len() / rows.len();
            out.iter_mut().enumerate().for_each(|(i, b)| *b = ((rows.start * width + i) % 251) as u8);
            Ok(())
        }

        fn release_rows(&self, _: &str, _: Range<usize>) {}
    }

    #[test]
    fn every_weight_that_is_read_lies_in_the_file_as_it_is() {
        let ones = vec!["1"; 65].join(", ");
        let text = format!(
            "module @m {{
              weight @unread: f32[9]
              weight @big: u8[3, 1048577]
              weight @scalar: bool[]
              weight @small: i64[2] = [1, -1]
              weight @table: i64[65] = [{ones}]
              weight @flat: f16[2, 3]
              weight @turned: f16[3, 2] = transpose @flat
              graph @g() -> (u8[3145731], bool[1], i64[2, 1], i64[65, 1], f16[6]) {{
                %a = reshape @big {{dims=[3145731]}}: u8[3145731]
                %b = reshape @scalar {{dims=[1]}}: bool[1]
                %c = reshape @small {{dims=[2, 1]}}: i64[2, 1]
                %d = reshape @table {{dims=[65, 1]}}: i64[65, 1]
                %e = reshape @turned {{dims=[6]}}: f16[6]
                return %a, %b, %c, %d, %e
              }}
            }}"
        );
        let module = VerifiedModule::new(parse(&text).unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut writer = ArtifactWriter::create(&dir.path().join("m.dlxa")).unwrap();
        let told = AtomicU64::new(0);
        let progress = |done, total| {
            told.fetch_max(u64::from(done == total) * total, Ordering::Relaxed);
        };
        let emission = emit_plain(&module, &Ramp, &mut writer, &AtomicBool::new(false), &progress).unwrap();
        assert_eq!((emission.bytes, told.load(Ordering::Relaxed)), (3 * 1_048_577 + 1 + 65 * 8 + 12, emission.bytes));
        let (mapped, range) = writer.map_weights().unwrap();
        let all = &mapped.bytes()[range];
        let stored = |name: &str| match emission.module.weights[emission.module.weight(name).unwrap()].def {
            WeightDef::Stored { offset, bytes, .. } => &all[offset as usize..][..bytes as usize],
            ref other => panic!("{other:?}"),
        };
        assert!(stored("big").iter().enumerate().all(|(i, b)| *b == (i % 251) as u8));
        assert_eq!(stored("turned"), [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]);
        assert_eq!(stored("table")[..16], [1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        assert!(emission.module.weight("unread").is_none() && emission.module.weight("flat").is_none());
        assert!(emission.module.to_string().contains("weight @small: i64[2] = [1, -1]"));

        let packed = "module @m { weight @w: q8[2, 2] graph @g(%x: f32[1, 2]) -> (f32[1, 2]) {
            %y = linear %x, @w: f32[1, 2] return %y } }";
        let module = VerifiedModule::new(parse(packed).unwrap()).unwrap();
        let error = emit_plain(&module, &Ramp, &mut writer, &AtomicBool::new(false), &progress).unwrap_err();
        assert!(error.to_string().contains("q8[2, 2] has no plain elements"), "{error}");
    }
}
