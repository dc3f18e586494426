//! Weights of a foreign graph as views of its tensors: transposed, sliced, dequantized, and only read when asked for.
//!
//! A [`Recipe`] says how one weight of the module is read: as rows of `[N, K]`, whatever the tensor looks like. Invariant: a
//! recipe that was made reads nothing outside its tensors, however it is turned or sliced afterwards.

mod codes;
mod grid;
mod make;
mod recipe;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use dlx_ir::{Contents, DType, Error, QuantFormat};
use dlx_targets::{CodeRows, WeightSource};
use half::{bf16, f16};

use crate::checkpoint::first_nonfinite;
pub use make::{BlockTable, NBits};
pub use recipe::Recipe;

/// Memory behind mapped files. Both methods are only hints.
pub trait Pages: Sync {
    /// Bytes of a tensor will be read soon.
    fn prefetch(&self, bytes: &[u8]);
    /// Bytes of a tensor have been read, and their memory may go.
    fn release(&self, bytes: &[u8]);
}

/// The weights of a module by name.
#[derive(Default)]
pub struct OnnxWeights<'a> {
    recipes: BTreeMap<String, Entry<'a>>,
    pages: Option<&'a dyn Pages>,
}

struct Entry<'a> {
    recipe: Recipe<'a>,
    /// Rows that have been released, of a tensor whose rows lie across each other.
    released: AtomicUsize,
}

impl fmt::Debug for OnnxWeights<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.recipes.keys()).finish()
    }
}

impl<'a> OnnxWeights<'a> {
    /// No weights; `pages` is told what is read and when it has been used.
    pub fn new(pages: Option<&'a dyn Pages>) -> Self {
        OnnxWeights { recipes: BTreeMap::new(), pages }
    }

    /// Says how the source weight `name` of the module is read; its type must be the recipe's.
    pub fn insert(&mut self, name: impl Into<String>, recipe: Recipe<'a>) {
        self.recipes.insert(name.into(), Entry { recipe, released: AtomicUsize::new(0) });
    }

    /// How a source weight is read.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn recipe(&self, name: &str) -> Result<&Recipe<'a>, Error> {
        self.entry(name).map(|e| &e.recipe)
    }

    /// Names of the weights, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.recipes.keys().map(String::as_str)
    }

    /// Keeps the weights that are read and forgets all others.
    pub fn retain(&mut self, read: impl Fn(&str) -> bool) {
        self.recipes.retain(|name, _| read(name));
    }

    /// Fails if `values`, the rows of `name` from `first_row` on, hold a NaN or an infinity.
    ///
    /// # Errors
    /// Names the tensor, the position and the value.
    pub fn check_finite(&self, name: &str, first_row: usize, values: &[f32]) -> Result<(), Error> {
        let Some(i) = first_nonfinite(values) else { return Ok(()) };
        let recipe = self.recipe(name)?;
        let (row, column) = (first_row + i / recipe.width().max(1), i % recipe.width().max(1));
        let value = values.get(i).copied().unwrap_or(f32::NAN);
        Err(Error::new(recipe.place(), format!("{value} at [{row}, {column}] of the weight {name}"))
            .help("the model is damaged: download or export it again"))
    }

    fn entry(&self, name: &str) -> Result<&Entry<'a>, Error> {
        self.recipes.get(name).ok_or_else(|| Error::new(name, "is no weight of the model"))
    }

    /// Asks for the whole of a tensor whose rows lie across each other: its first rows are on every page of it.
    fn prefetch(&self, recipe: &Recipe<'_>, rows: &Range<usize>) {
        if let (Some(pages), true, true) = (self.pages, recipe.is_across(), rows.start == 0) {
            pages.prefetch(&recipe.codes().bytes);
        }
    }
}

impl WeightSource for OnnxWeights<'_> {
    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<(), Error> {
        let recipe = self.recipe(name)?;
        self.prefetch(recipe, &rows);
        recipe.read(rows, out)
    }

    fn read_bytes(&self, name: &str, rows: Range<usize>, out: &mut [u8]) -> Result<(), Error> {
        let recipe = self.recipe(name)?;
        self.prefetch(recipe, &rows);
        let mut values = vec![0.0; rows.len().saturating_mul(recipe.width())];
        recipe.read(rows, &mut values)?;
        let bytes: Vec<u8> = match recipe.ty().dtype {
            DType::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            DType::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
            DType::BF16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
            other => return Err(Error::new(recipe.place(), format!("has no bytes of {other}"))),
        };
        if bytes.len() != out.len() {
            return Err(Error::new(recipe.place(), format!("{} bytes do not fit {}", bytes.len(), out.len())));
        }
        out.copy_from_slice(&bytes);
        Ok(())
    }

    fn read_codes(&self, name: &str, format: QuantFormat, rows: Range<usize>, out: CodeRows<'_>) -> Result<(), Error> {
        let recipe = self.recipe(name)?;
        self.prefetch(recipe, &rows);
        recipe.read_codes(format, rows, out)
    }

    fn release_rows(&self, name: &str, rows: Range<usize>) {
        let (Some(pages), Ok(entry)) = (self.pages, self.entry(name)) else { return };
        let recipe = &entry.recipe;
        if !recipe.is_across() {
            if let Some(bytes) = recipe.row_bytes(&rows) {
                pages.release(bytes);
            }
            return;
        }
        let released = entry.released.fetch_add(rows.len(), Ordering::Relaxed) + rows.len();
        if released >= recipe.len() {
            entry.released.store(0, Ordering::Relaxed);
            pages.release(&recipe.codes().bytes);
        }
    }
}

impl dlx_ir::Source for OnnxWeights<'_> {
    fn read(&self, name: &str) -> Result<Contents<'_>, String> {
        let recipe = self.recipe(name).map_err(|e| e.to_string())?;
        let (n, k) = (recipe.len(), recipe.width());
        if let DType::Quant(format) = recipe.ty().dtype {
            let tables = n * format.groups(k);
            let (mut codes, mut scales) = (vec![0; n * k], vec![0.0; tables]);
            let mut mins = vec![0.0; if format.has_min() { tables } else { 0 }];
            let out = CodeRows { codes: &mut codes, scales: &mut scales, mins: &mut mins };
            recipe.read_codes(format, 0..n, out).map_err(|e| e.to_string())?;
            return Ok(Contents::Quantized { codes: codes.into(), scales: scales.into(), mins: mins.into() });
        }
        let mut values = vec![0.0; n * k];
        recipe.read(0..n, &mut values).map_err(|e| e.to_string())?;
        Ok(values.into())
    }
}

/// Whether two recipes give the same numbers to the last bit, as an embedding and a head that a file holds twice do. Reads
/// only as far as they agree.
///
/// # Errors
/// A recipe cannot be read.
pub fn same_rows(a: &Recipe<'_>, b: &Recipe<'_>) -> Result<bool, Error> {
    if a.dims() != b.dims() {
        return Ok(false);
    }
    if a.is_same_view(b) {
        return Ok(true);
    }
    let step = (COMPARED / a.width().max(1)).clamp(1, a.len().max(1));
    let (mut x, mut y) = (vec![0.0; step * a.width()], vec![0.0; step * a.width()]);
    for first in (0..a.len()).step_by(step) {
        let rows = first..(first + step).min(a.len());
        let (x, y) = (&mut x[..rows.len() * a.width()], &mut y[..rows.len() * a.width()]);
        a.read(rows.clone(), x)?;
        b.read(rows, y)?;
        if x.iter().zip(&*y).any(|(x, y)| x.to_bits() != y.to_bits()) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Values that are compared at a time, about.
const COMPARED: usize = 1 << 18;

#[cfg(test)]
mod tests;
