//! Emission: computes every weight expression and streams the bytes into the artifact.
//!
//! Invariant: the bytes depend on the module and the source alone, not on the number of threads, and memory does not
//! grow with the model: work is cut into chunks of whole 16-row tiles, and each thread holds one chunk at a time.

mod loss;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dlx_ir::layout::{TILE_COLUMNS, packed_bytes, tile_bytes};
use dlx_ir::quant::{QuantizedRow, codebook};
use dlx_ir::{
    DType, Data, Error, Grid, Id, Module, Op, QuantFormat, Type, VerifiedModule, Weight, WeightDef, WeightId,
};
use dlx_runtime::cpu::{pack_tile_float, pack_tile_quant, quantize_row};
use half::{bf16, f16};
use rayon::prelude::*;

use crate::artifact_writer::ArtifactWriter;
pub use loss::Recoded;
use loss::{Loss, lost};

/// Where to put rows of codes, as [`dlx_ir::quant`] stores them: unsigned, one to a byte.
#[derive(Debug)]
pub struct CodeRows<'a> {
    /// One code per element.
    pub codes: &'a mut [u8],
    /// One scale per group of a row.
    pub scales: &'a mut [f32],
    /// One minimum per group of a row; empty for symmetric formats.
    pub mins: &'a mut [f32],
}

/// Where source tensors come from.
pub trait WeightSource: Sync {
    /// Reads rows of a tensor as f32; of a quantized one, the numbers that its codes stand for.
    ///
    /// # Errors
    /// A missing tensor, rows out of range, or (unless allowed) a NaN or infinity; names file and tensor.
    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<(), Error>;

    /// Reads rows of a tensor, counted along its first dimension, as the bytes of its own element type: row-major and
    /// little-endian. A scalar is one row.
    ///
    /// # Errors
    /// A missing tensor, or rows that do not fill `out`; names file and tensor.
    fn read_bytes(&self, name: &str, rows: Range<usize>, out: &mut [u8]) -> Result<(), Error>;

    /// Reads rows of a tensor that is quantized already, as a source weight of a quantized type has it.
    ///
    /// # Errors
    /// As for [`WeightSource::read_rows`], or the tensor is not quantized, or not in this format.
    fn read_codes(
        &self,
        name: &str,
        format: QuantFormat,
        _rows: Range<usize>,
        _out: CodeRows<'_>,
    ) -> Result<(), Error> {
        Err(Error::new(name, format!("has no codes of {format}")))
    }

    /// How a tensor is stored, for people, if it came as codes: what becomes of those is told.
    fn stored_as(&self, _name: &str) -> Option<&str> {
        None
    }

    /// Says that rows have been used and their memory may go.
    fn release_rows(&self, name: &str, rows: Range<usize>);
}

/// What was emitted.
#[derive(Debug)]
pub struct Emission {
    /// The module with every weight stored in the artifact.
    pub module: VerifiedModule,
    /// Bytes of weights that were written.
    pub bytes: u64,
    /// What became of weights that came as codes, in the module's order.
    pub recoded: Vec<Recoded>,
}

/// Values per chunk, about: enough to amortise a task, little enough for the cache.
const CHUNK_VALUES: usize = 1 << 19;

#[derive(Debug)]
struct Task {
    weight: WeightId,
    rows: Range<usize>,
    offset: u64,
}

/// Where every weight goes, and what has to be written.
#[derive(Debug)]
pub struct Placed {
    /// The module with every weight stored.
    pub module: VerifiedModule,
    /// Bytes of weights that have to be written.
    pub bytes: u64,
    tasks: Vec<Task>,
}

/// Places all weights that graphs read, but for those that a module in `stored` has already under the same name and type:
/// targets that read the same layout share their bytes. `reserve` sets bytes aside and says where. Nothing is read.
///
/// # Errors
/// A weight that cannot be packed.
pub fn place(
    module: &VerifiedModule,
    stored: &[&Module],
    reserve: &mut dyn FnMut(u64) -> u64,
) -> Result<Placed, Error> {
    let mut read = module.weights.side_table(false);
    for w in module.graphs.iter().flat_map(|g| &g.nodes).flat_map(|n| &n.inputs).filter_map(|i| i.weight()) {
        read[w] = true;
    }
    let known = stored.iter().flat_map(|m| m.weights.iter());
    let known = known.filter_map(|(_, w)| match w.def {
        WeightDef::Stored { offset, bytes, .. } => Some(((w.name.as_str(), w.ty.to_string()), (offset, bytes))),
        _ => None,
    });
    let known: BTreeMap<_, _> = known.collect();
    let mut stored = Module::new(module.name.clone());
    let mut map = Vec::new();
    let mut tasks = Vec::new();
    let mut total = 0;
    for (id, w) in module.weights.iter() {
        if !read[id] {
            map.push(None);
            continue;
        }
        let shard = if let WeightDef::Expr(Op::Pack { shard, .. }, _) = w.def { shard } else { None };
        if let Some(&(offset, bytes)) = known.get(&(w.name.as_str(), w.ty.to_string())) {
            let def = WeightDef::Stored { offset, bytes, shard };
            map.push(Some(stored.weights.push(dlx_ir::Weight { def, ..w.clone() })));
            continue;
        }
        let layout = Layout::of(module, id)?;
        let offset = reserve(layout.bytes() as u64);
        total += layout.bytes() as u64;
        let step = (CHUNK_VALUES / layout.k / TILE_COLUMNS).max(1) * TILE_COLUMNS;
        tasks.extend((0..layout.n).step_by(step).map(|first| Task {
            weight: id,
            rows: first..(first + step).min(layout.n),
            offset: offset + (first / TILE_COLUMNS * layout.tile) as u64,
        }));
        let def = WeightDef::Stored { offset, bytes: layout.bytes() as u64, shard };
        map.push(Some(stored.weights.push(dlx_ir::Weight { def, ..w.clone() })));
    }
    stored.states = module.states.clone();
    stored.graphs = module.graphs.clone();
    for input in stored.graphs.iter_mut().flat_map(|g| &mut g.nodes).flat_map(|n| &mut n.inputs) {
        if let dlx_ir::Operand::Weight(w) = input {
            *w = map[w.index()].expect("read weights are stored");
        }
    }
    let stored = VerifiedModule::new(stored).map_err(Error::first_of)?;
    Ok(Placed { module: stored, bytes: total, tasks })
}

/// Computes the weights of `module` and writes them where [`place`] said, in space that `writer` has set aside. `progress` is
/// told bytes done and bytes in all; setting `cancel` stops between chunks.
///
/// # Errors
/// What the source or the writer reports, a number or scale that its stored type cannot hold, or cancellation.
pub fn emit(
    module: &VerifiedModule,
    placed: Placed,
    source: &dyn WeightSource,
    writer: &ArtifactWriter,
    cancel: &AtomicBool,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Emission, Error> {
    let Placed { module: stored, bytes: total, tasks } = placed;
    let done = AtomicU64::new(0);
    let work = |task: &Task| {
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::new("compile", "was interrupted"));
        }
        let (bytes, loss) = chunk(module, task, source)?;
        writer.write_at(task.offset, &bytes)?;
        progress(done.fetch_add(bytes.len() as u64, Ordering::Relaxed) + bytes.len() as u64, total);
        Ok((task.weight, loss))
    };
    let losses = tasks.par_iter().map(work).collect::<Result<Vec<_>, _>>()?;
    // In the order of the tasks, so that sums do not depend on the number of threads.
    let mut sums: BTreeMap<WeightId, Loss> = BTreeMap::new();
    for (weight, loss) in losses {
        if let Some(loss) = loss {
            let sum = sums.entry(weight).or_default();
            *sum = sum.plus(loss);
        }
    }
    let recoded = |(id, loss): (&WeightId, &Loss)| {
        let name = tensor(module, *id).to_owned();
        let kept = operand(module, *id)
            .is_some_and(|inner| inner.def == WeightDef::Source && matches!(inner.ty.dtype, DType::Quant(_)));
        Recoded { name, dtype: module.weights[*id].ty.dtype, kept, squares: loss.squares, error: loss.error }
    };
    let recoded = sums.iter().map(recoded).collect();
    Ok(Emission { module: stored, bytes: total, recoded })
}

/// What a weight packs.
fn operand(module: &Module, id: WeightId) -> Option<&Weight> {
    match &module.weights[id].def {
        WeightDef::Expr(Op::Pack { .. }, inputs) => inputs.first().map(|i| &module.weights[*i]),
        _ => None,
    }
}

/// How a weight lies in the artifact: `n` rows of `k`, in tiles of 16 rows if packed, else row by row as f32.
struct Layout {
    n: usize,
    k: usize,
    /// Bytes of 16 rows.
    tile: usize,
    packed: bool,
}

impl Layout {
    fn of(module: &Module, id: WeightId) -> Result<Self, Error> {
        let w = &module.weights[id];
        let place = || module.weight_text(w);
        match (w.ty.shape().as_deref(), w.ty.layout.is_some()) {
            (Some(&[n, k]), true) => {
                let tile = tile_bytes(w.ty.dtype, k).filter(|_| packed_bytes(w.ty.dtype, n, k).is_some());
                let tile =
                    tile.ok_or_else(|| Error::new(place(), "cannot be packed: too large, or of a wrong type"))?;
                Ok(Layout { n, k, tile, packed: true })
            }
            (Some(&[n]), false) if w.ty.dtype == DType::F32 => {
                Ok(Layout { n, k: 1, tile: 4 * TILE_COLUMNS, packed: false })
            }
            _ => Err(Error::new(place(), "is neither a packed matrix nor an f32 vector")
                .help("run the lower pass before emission")),
        }
    }

    fn bytes(&self) -> usize {
        if self.packed { self.n.div_ceil(TILE_COLUMNS) * self.tile } else { self.n * 4 }
    }
}

/// The bytes of a chunk of whole tiles, and what is lost there of numbers that came as codes.
fn chunk(module: &Module, task: &Task, source: &dyn WeightSource) -> Result<(Vec<u8>, Option<Loss>), Error> {
    let w = &module.weights[task.weight];
    let layout = Layout::of(module, task.weight)?;
    let (k, count) = (layout.k, task.rows.len());
    let WeightDef::Expr(Op::Pack { .. }, inputs) = &w.def else {
        let mut values = vec![0.0; count];
        rows(module, task.weight, task.rows.clone(), source, &mut values)?;
        return Ok((values.iter().flat_map(|v| v.to_le_bytes()).collect(), None));
    };
    let mut out = vec![0u8; count.div_ceil(TILE_COLUMNS) * layout.tile];
    let inner = &module.weights[inputs[0]];
    if let (WeightDef::Source, DType::Quant(format)) = (&inner.def, inner.ty.dtype) {
        let loss = keep_codes(&inner.name, format, task.rows.clone(), &layout, source, &mut out)?;
        return Ok((out, Some(loss)));
    }
    let mut loss = source.stored_as(tensor(module, inputs[0])).map(|_| Loss::default());
    let mut values = vec![0.0; count * k];
    match (&inner.def, inner.ty.dtype) {
        (WeightDef::Expr(Op::Quantize { .. }, from), DType::Quant(format)) => {
            rows(module, from[0], task.rows.clone(), source, &mut values)?;
            let tiles = values.chunks(TILE_COLUMNS * k).zip(out.chunks_mut(layout.tile));
            let mut packer = Packer::new(format, k);
            for (i, (tile, bytes)) in tiles.enumerate() {
                if !packer.pack(tile, bytes, &mut loss) {
                    let name = tensor(module, from[0]);
                    let place = position(tile, task.rows.start + i * TILE_COLUMNS, k);
                    return Err(Error::new(name, format!("a scale of {format} does not fit f16: {place}"))
                        .help("numbers so far apart do not quantize: compile this checkpoint with --quant bf16"));
                }
            }
        }
        (_, dtype) => {
            rows(module, inputs[0], task.rows.clone(), source, &mut values)?;
            if let (Some(loss), WeightDef::Expr(Op::Cast { .. }, from)) = (&mut loss, &inner.def) {
                let mut before = vec![0.0; values.len()];
                rows(module, from[0], task.rows.clone(), source, &mut before)?;
                *loss = Loss::of(&before, &values);
            }
            let size = dtype.size().expect("unquantized types have a size");
            let elements = float_bytes(dtype, &values);
            for (tile, bytes) in elements.chunks(TILE_COLUMNS * k * size).zip(out.chunks_mut(layout.tile)) {
                pack_tile_float(dtype, tile, k, bytes);
            }
        }
    }
    Ok((out, loss))
}

/// Packs rows of a source weight that is quantized already; scales and minima that are not f16 are rounded.
fn keep_codes(
    name: &str,
    format: QuantFormat,
    rows: Range<usize>,
    layout: &Layout,
    source: &dyn WeightSource,
    out: &mut [u8],
) -> Result<Loss, Error> {
    let (k, groups) = (layout.k, format.groups(layout.k));
    let mut codes = vec![0; rows.len() * k];
    let mut scales = vec![0.0; rows.len() * groups];
    let mut mins = vec![0.0; if format.has_min() { scales.len() } else { 0 }];
    let into = CodeRows { codes: &mut codes, scales: &mut scales, mins: &mut mins };
    source.read_codes(name, format, rows.clone(), into)?;
    source.release_rows(name, rows.clone());
    if format.grid == Grid::Table && !codes.chunks(k).all(codebook::are_codes) {
        return Err(Error::new(
            name,
            format!("has rows whose codes are none of {format}: a run of them has one level"),
        )
        .help("start from the float model"));
    }
    let narrow = |wide: &[f32], what: &str| {
        let narrow: Vec<f16> = wide.iter().map(|v| f16::from_f32(*v)).collect();
        if let Some(i) = narrow.iter().position(|v| !v.is_finite()) {
            let (value, row) = (wide[i], rows.start + i / groups);
            return Err(Error::new(name, format!("{what} {value:e} of row {row} does not fit f16"))
                .help("weights that come quantized are stored with f16 scales: start from the float model"));
        }
        Ok(narrow)
    };
    let wide = (scales, mins);
    let (scales, mins) = (narrow(&wide.0, "scale")?, narrow(&wide.1, "minimum")?);
    let loss = lost(format, &codes, k, [&wide.0, &wide.1], [&scales, &mins]);
    for (i, (codes, bytes)) in codes.chunks(TILE_COLUMNS * k).zip(out.chunks_mut(layout.tile)).enumerate() {
        let tables = |x: &[f16]| {
            let first = (i * TILE_COLUMNS * groups).min(x.len());
            first..(first + TILE_COLUMNS * groups).min(x.len())
        };
        pack_tile_quant(format, codes, &scales[tables(&scales)], &mins[tables(&mins)], k, bytes);
    }
    Ok(loss)
}

/// Quantizes and packs tiles of one weight, reusing its buffers.
struct Packer {
    format: QuantFormat,
    k: usize,
    row: QuantizedRow,
    codes: Vec<u8>,
    scales: Vec<f16>,
    mins: Vec<f16>,
}

impl Packer {
    fn new(format: QuantFormat, k: usize) -> Self {
        let row = QuantizedRow::zeroed(format, k);
        Packer { format, k, row, codes: Vec::new(), scales: Vec::new(), mins: Vec::new() }
    }

    /// False when a scale does not fit f16. What is lost is added up where that is asked for.
    fn pack(&mut self, tile: &[f32], out: &mut [u8], loss: &mut Option<Loss>) -> bool {
        self.codes.clear();
        self.scales.clear();
        self.mins.clear();
        let mut fits = true;
        for row in tile.chunks(self.k) {
            fits &= quantize_row(self.format, row, &mut self.row);
            if let Some(loss) = loss {
                *loss = loss.plus(Loss::of(row, &self.row.dequantize(self.format)));
            }
            self.codes.extend_from_slice(&self.row.codes);
            self.scales.extend_from_slice(&self.row.scales);
            if self.format.has_min() {
                self.mins.extend_from_slice(&self.row.mins);
            }
        }
        pack_tile_quant(self.format, &self.codes, &self.scales, &self.mins, self.k, out);
        fits
    }
}

fn float_bytes(dtype: DType, values: &[f32]) -> Vec<u8> {
    match dtype {
        DType::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        DType::BF16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

/// Rounds numbers to what an element type can hold; a finite number must stay one. `name` and `range` are the tensor and
/// the rows that they come from.
fn round_to(dtype: DType, values: &mut [f32], name: &str, range: &Range<usize>) -> Result<(), Error> {
    let round: fn(f32) -> f32 = match dtype {
        DType::F16 => |v| f16::from_f32(v).to_f32(),
        DType::BF16 => |v| bf16::from_f32(v).to_f32(),
        _ => return Ok(()),
    };
    let width = (values.len() / range.len().max(1)).max(1);
    for (i, v) in values.iter_mut().enumerate() {
        let rounded = round(*v);
        if !rounded.is_finite() && v.is_finite() {
            let wider = if dtype == DType::F16 { "bf16" } else { "none" };
            let (row, column, pattern) = (range.start + i / width, i % width, pattern(name));
            return Err(Error::new(name, format!("{v:e} at [{row}, {column}] does not fit {dtype}")).help(format!(
                "use a type with a larger range: --quant {wider}, or --keep {pattern}={wider} where --keep asks for {dtype}"
            )));
        }
        *v = rounded;
    }
    Ok(())
}

/// The largest value of rows of `k` and where it is; a NaN counts as the largest of all.
fn position(rows: &[f32], first_row: usize, k: usize) -> String {
    let size = |v: f32| if v.is_nan() { f32::INFINITY } else { v.abs() };
    let worst = rows.iter().enumerate().max_by(|(_, a), (_, b)| size(**a).total_cmp(&size(**b)));
    worst.map_or_else(String::new, |(i, v)| format!("{v:e} at [{}, {}]", first_row + i / k, i % k))
}

/// Name of the (first) source tensor of a weight expression.
fn tensor(module: &Module, id: WeightId) -> &str {
    match &module.weights[id].def {
        WeightDef::Expr(_, inputs) if !inputs.is_empty() => tensor(module, inputs[0]),
        _ => &module.weights[id].name,
    }
}

/// What selects a weight and its like in the other layers: the part of its name that is not a number or `weight`.
fn pattern(name: &str) -> &str {
    name.rsplit('.').find(|part| !part.starts_with("weight") && part.parse::<usize>().is_err()).unwrap_or(name)
}

/// Whether an expression makes rows of floats of rows of floats: joined one behind the other, or turned.
fn computed(module: &Module, w: &Weight, op: &Op, inputs: &[WeightId]) -> bool {
    let float = |ty: &Type| ty.dtype.is_float() && matches!(ty.dims.len(), 1 | 2);
    let moved = match op {
        Op::Concat { axis } => *axis == 0,
        Op::Transpose { perm } => perm[..] == [1, 0],
        _ => true,
    };
    moved && float(&w.ty) && inputs.iter().all(|i| float(&module.weights[*i].ty))
}

/// Rows of a weight expression as f32.
fn rows(
    module: &Module,
    id: WeightId,
    range: Range<usize>,
    source: &dyn WeightSource,
    out: &mut [f32],
) -> Result<(), Error> {
    let w = &module.weights[id];
    match &w.def {
        WeightDef::Source => {
            source.read_rows(&w.name, range.clone(), out)?;
            source.release_rows(&w.name, range);
            Ok(())
        }
        WeightDef::Expr(op, inputs) => match op {
            // Rows of numbers are all that is read here: what a source holds of other types, or moves otherwise, is not.
            Op::Cast { .. } | Op::Concat { .. } | Op::Scale { .. } | Op::Transpose { .. }
                if !computed(module, w, op, inputs) =>
            {
                Err(Error::new(module.weight_text(w), format!("this `{}` cannot be computed at emission", op.name())))
            }
            Op::Cast { to, .. } => {
                rows(module, inputs[0], range.clone(), source, out)?;
                round_to(*to, out, tensor(module, inputs[0]), &range)
            }
            Op::Scale { by } => {
                rows(module, inputs[0], range.clone(), source, out)?;
                out.iter_mut().for_each(|v| *v *= by);
                round_to(w.ty.dtype, out, tensor(module, inputs[0]), &range)
            }
            Op::Concat { .. } => {
                let width = out.len() / range.len().max(1);
                let mut first = 0;
                for &input in inputs {
                    let n = module.weights[input].ty.dims[0].fixed().expect("weights have static dimensions");
                    let part = range.start.max(first)..range.end.min(first + n);
                    if !part.is_empty() {
                        let into = &mut out[(part.start - range.start) * width..(part.end - range.start) * width];
                        rows(module, input, part.start - first..part.end - first, source, into)?;
                    }
                    first += n;
                }
                Ok(())
            }
            Op::Slice { starts, .. } => {
                let first = usize::try_from(starts[0]).expect("the verifier bounds slices");
                rows(module, inputs[0], range.start + first..range.end + first, source, out)
            }
            Op::Gather { .. } => {
                let WeightDef::Literal(Data::I64(order)) = &module.weights[inputs[1]].def else {
                    return Err(Error::new(module.weight_text(w), "takes rows in an order that is no literal"));
                };
                let width = out.len() / range.len().max(1);
                let n = module.weights[inputs[0]].ty.dims[0].fixed().expect("weights have static dimensions");
                for (row, i) in out.chunks_mut(width.max(1)).zip(&order[range]) {
                    // Negative ones count from the end.
                    let i = usize::try_from(if *i < 0 { *i + n as i64 } else { *i }).ok().filter(|i| *i < n);
                    let i = i.ok_or_else(|| Error::new(module.weight_text(w), format!("has no row {i:?}")))?;
                    rows(module, inputs[0], i..i + 1, source, row)?;
                }
                Ok(())
            }
            Op::Transpose { .. } => {
                // Columns of the operand: read whole, which is why `fold` removes transposes where it can.
                let [n, k] = [0, 1].map(|d| module.weights[inputs[0]].ty.dims[d].fixed().expect("static"));
                let mut whole = vec![0.0; n * k];
                rows(module, inputs[0], 0..n, source, &mut whole)?;
                for (row, r) in out.chunks_mut(n).zip(range) {
                    row.iter_mut().enumerate().for_each(|(c, v)| *v = whole[c * k + r]);
                }
                Ok(())
            }
            other => {
                Err(Error::new(module.weight_text(w), format!("`{}` cannot be computed at emission", other.name())))
            }
        },
        WeightDef::Literal(Data::F32(values)) => {
            let width = out.len() / range.len().max(1);
            out.copy_from_slice(&values[range.start * width..range.end * width]);
            Ok(())
        }
        WeightDef::Literal(_) => Err(Error::new(module.weight_text(w), "holds integers, which no kernel reads")),
        WeightDef::Stored { .. } => Err(Error::new(module.weight_text(w), "is already stored")),
    }
}

#[cfg(test)]
mod tests;
