//! A weight matrix that a checkpoint stores as codes, as the rows that it stands for.
//!
//! `w = (number of the code − zero point) · scale / divisor`, in f32 and in that order, which is that of the libraries that
//! write such files. Invariant: a matrix that was opened reads nothing outside its tensors, a few rows at a time, and its
//! scales are numbers: one that is not, or is zero above codes that are something, is an error that names it.
//!
//! Where a format of ours holds codes and zero points as they are, the matrix has that format and its codes can be had; where
//! none does, it has the format that is the closest to it, and somebody else rounds.

mod order;
mod scales;

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use dlx_ir::quant::zero_point;
use dlx_ir::{DType, Error, Grid, QuantFormat};
use dlx_targets::CodeRows;

use super::shard::{Entry, Shard};
pub(super) use order::{Codes, Order};
pub(super) use scales::{Kind, Scales, float8};

/// One of the stored tensors that a weight is made of.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) name: String,
    pub(super) shard: usize,
    pub(super) entry: Entry,
}

impl Part {
    /// Its bytes, in the file.
    pub(super) fn bytes<'a>(&self, shards: &'a [Shard]) -> &'a [u8] {
        shards.get(self.shard).map_or(&[], |shard| shard.bytes(&self.entry))
    }

    /// File and tensor, for errors.
    pub(super) fn place(&self, shards: &[Shard]) -> String {
        format!("{}: `{}`", self.file(shards).display(), self.name)
    }

    fn file<'a>(&self, shards: &'a [Shard]) -> &'a Path {
        shards.get(self.shard).map_or(Path::new(""), Shard::path)
    }
}

/// What codes stand for before their zero point and scale.
#[derive(Clone, Debug)]
pub(super) enum Numbers {
    /// The code itself, which is that of the byte plus this, without a carry: what makes codes with a sign unsigned.
    Moved(u8),
    /// Numbers of a table, all of them multiples of the unit, if there is one.
    Table(Vec<f32>, Option<f32>),
}

/// Zero points, one for each scale.
#[derive(Clone, Debug)]
pub(super) enum Zeros {
    /// One for all.
    Of(u8),
    /// Codes of `bits` bits plus a number, without a carry; `[rows, groups]`, or turned.
    Stored { part: Part, order: Order, bits: usize, plus: u8, turned: bool },
}

/// Which columns share a scale.
#[derive(Clone, Debug)]
pub(super) enum Groups {
    /// Blocks of some rows and columns, of which the last may be short.
    Blocks { rows: usize, columns: usize },
    /// The group of each column.
    Of(Vec<u32>),
    /// As many consecutive elements as this, counted through all rows.
    Flat(usize),
}

/// Everything that says what a matrix of codes stands for.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) codes: Part,
    pub(super) order: Order,
    /// Bits of a code, at most 8.
    pub(super) bits: usize,
    /// `[N, K]`.
    pub(super) shape: [usize; 2],
    pub(super) numbers: Numbers,
    pub(super) zeros: Zeros,
    pub(super) scales: Scales,
    pub(super) groups: Groups,
    /// Entries of the scales from one block of rows to the next, and from one group to the next.
    pub(super) strides: [usize; 2],
    /// How it is stored, for people.
    pub(super) said: String,
}

/// A matrix of codes, opened.
#[derive(Debug)]
pub(super) struct Packed {
    layout: Layout,
    /// The number of each code, by its byte.
    numbers: Vec<f32>,
    /// Groups of a row that have zero points of their own.
    groups: usize,
    /// Each number as a multiple of the unit plus 128, where all numbers are multiples of one.
    units: Option<(Vec<u8>, f32)>,
    holder: Holder,
    /// Rows that have been released, where rows lie across each other.
    released: AtomicUsize,
}

/// The format of a matrix in an artifact, unless another is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Holder {
    /// It holds the codes as they are.
    Exact(QuantFormat),
    /// No format does; this one comes closest.
    Closest(QuantFormat),
    /// The matrix is to be numbers.
    None,
}

/// Columns that share a scale, and which entry it is.
struct Run {
    columns: Range<usize>,
    scale: usize,
    group: usize,
}

impl Packed {
    /// Looks through zero points and groups for a format that holds the codes.
    pub(super) fn new(layout: Layout, shards: &[Shard]) -> Self {
        let (numbers, units) = match &layout.numbers {
            Numbers::Moved(_) => ((0..=u8::MAX).map(f32::from).collect(), None),
            Numbers::Table(table, unit) => {
                let numbers = (0..=u8::MAX).map(|code| table.get(usize::from(code)).copied().unwrap_or(0.0));
                let numbers: Vec<f32> = numbers.collect();
                let units = unit.map(|unit| {
                    let stored = |n: &f32| (0..=u8::MAX).find(|code| (f32::from(*code) - 128.0) * unit == *n);
                    (numbers.iter().map(|n| stored(n).unwrap_or(128)).collect(), unit)
                });
                (numbers, units)
            }
        };
        let [_, k] = layout.shape;
        let groups = match &layout.groups {
            Groups::Blocks { columns, .. } => k.div_ceil(*columns),
            Groups::Of(groups) => groups.iter().max().map_or(1, |most| usize::try_from(*most).map_or(1, |g| g + 1)),
            Groups::Flat(_) => 1,
        };
        let mut packed = Packed {
            layout,
            numbers,
            groups,
            units,
            holder: Holder::Closest(QuantFormat::symmetric(8, Some(32))),
            released: AtomicUsize::new(0),
        };
        if let Some(format) = packed.holder(shards) {
            packed.holder = Holder::Exact(format);
        }
        packed
    }

    /// `[N, K]`.
    pub(super) fn shape(&self) -> &[usize; 2] {
        &self.layout.shape
    }

    /// Element type as a weight of a module, and the format that its numbers are to be rounded into.
    pub(super) fn types(&self) -> (DType, Option<QuantFormat>) {
        match self.holder {
            Holder::Exact(format) => (DType::Quant(format), None),
            Holder::Closest(format) => (DType::F32, Some(format)),
            Holder::None => (DType::F32, None),
        }
    }

    /// Forgets all formats.
    pub(super) fn as_numbers(&mut self) {
        self.holder = Holder::None;
    }

    /// How it is stored, for people.
    pub(super) fn said(&self) -> &str {
        &self.layout.said
    }

    /// The tensor of the codes.
    pub(super) fn codes(&self) -> &Part {
        &self.layout.codes
    }

    /// Reads rows as the numbers that they stand for.
    ///
    /// # Errors
    /// Rows that are not there, a buffer of another length, or a scale that is none.
    pub(super) fn read_rows(&self, shards: &[Shard], range: Range<usize>, out: &mut [f32]) -> Result<(), Error> {
        let width = self.layout.shape[1];
        self.check(shards, &range, out.len(), width)?;
        let mut codes = vec![0; width];
        for (row, out) in range.zip(out.chunks_mut(width)) {
            self.row(shards, row, &mut codes)?;
            self.each_run(row, |run| {
                let zero = f32::from(self.zero(shards, row, run.group));
                let scale = self.scale(shards, row, &run, &codes, zero)?;
                let divisor = self.layout.scales.divisor;
                let part = run.columns.clone();
                for (v, code) in out.iter_mut().zip(&codes).take(part.end).skip(part.start) {
                    *v = self.number(*code, zero) * scale;
                    if divisor != 1.0 {
                        *v /= divisor;
                    }
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Reads rows as codes of the format that holds them.
    ///
    /// # Errors
    /// As for [`Packed::read_rows`], or the format does not hold the codes.
    pub(super) fn read_codes(
        &self,
        shards: &[Shard],
        format: QuantFormat,
        range: Range<usize>,
        out: CodeRows<'_>,
    ) -> Result<(), Error> {
        if self.holder != Holder::Exact(format) {
            return Err(Error::new(self.layout.codes.place(shards), format!("has no codes of {format}")));
        }
        let (width, groups) = (self.layout.shape[1], format.groups(self.layout.shape[1]));
        self.check(shards, &range, out.codes.len(), width)?;
        self.check(shards, &range, out.scales.len(), groups)?;
        self.check(shards, &range, out.mins.len(), if format.has_min() { groups } else { 0 })?;
        let (len, middle) = (format.group_len(width), zero_point(format));
        for ((i, row), codes) in range.enumerate().zip(out.codes.chunks_mut(width)) {
            self.row(shards, row, codes)?;
            self.each_run(row, |run| {
                let zero = self.zero(shards, row, run.group);
                let scale = self.scale(shards, row, &run, codes, f32::from(zero))? / self.layout.scales.divisor;
                let unit = self.units.as_ref().map_or(1.0, |(_, unit)| *unit);
                let first = run.columns.start.div_ceil(len);
                for g in first..run.columns.end.div_ceil(len) {
                    out.scales[i * groups + g] = scale * unit;
                    if format.has_min() {
                        out.mins[i * groups + g] = -f32::from(zero) * scale;
                    }
                }
                let shift = if format.has_min() { 0 } else { middle.wrapping_sub(zero) };
                for code in codes.iter_mut().take(run.columns.end).skip(run.columns.start) {
                    *code = match &self.units {
                        Some((units, _)) => units.get(usize::from(*code)).copied().unwrap_or(middle),
                        None => code.wrapping_add(shift),
                    };
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Hints that rows have been used.
    pub(super) fn release(&self, shards: &[Shard], rows: &Range<usize>) {
        let Layout { codes, order, shape: [n, _], .. } = &self.layout;
        let (Some(shard), bytes) = (shards.get(codes.shard), codes.bytes(shards).len()) else { return };
        if matches!(order, Order::Down | Order::Interleaved) {
            let released = self.released.fetch_add(rows.len(), Ordering::Relaxed) + rows.len();
            if released >= *n {
                self.released.store(0, Ordering::Relaxed);
                shard.release(&codes.entry, 0..bytes);
            }
        } else if rows.start <= rows.end && rows.end <= *n {
            let row = bytes / n;
            shard.release(&codes.entry, rows.start * row..rows.end * row);
        }
    }

    fn check(&self, shards: &[Shard], range: &Range<usize>, found: usize, per_row: usize) -> Result<(), Error> {
        let [n, k] = self.layout.shape;
        if range.start <= range.end && range.end <= n && range.len().checked_mul(per_row) == Some(found) {
            return Ok(());
        }
        let message = format!("rows {range:?} of [{n}, {k}] do not fit the buffer for them");
        Err(Error::new(self.layout.codes.place(shards), message))
    }

    /// The codes of a row, without a sign.
    fn row(&self, shards: &[Shard], row: usize, out: &mut [u8]) -> Result<(), Error> {
        let Layout { codes, order, bits, shape, .. } = &self.layout;
        let stored = Codes { bytes: codes.bytes(shards), order: *order, bits: *bits, shape: *shape };
        stored.row(row, out);
        if let Numbers::Moved(plus) = self.layout.numbers {
            out.iter_mut().for_each(|code| *code = code.wrapping_add(plus));
            if let Some(column) = out.iter().position(|code| u32::from(*code) >= 1 << bits) {
                let code = i16::from(out[column]) - i16::from(plus);
                let message = format!("holds {code} at [{row}, {column}], which is no code of {bits} bits");
                return Err(Error::new(codes.place(shards), message).help(DAMAGED));
            }
        }
        Ok(())
    }

    fn number(&self, code: u8, zero: f32) -> f32 {
        self.numbers.get(usize::from(code)).copied().unwrap_or(0.0) - zero
    }

    fn zero(&self, shards: &[Shard], row: usize, group: usize) -> u8 {
        match &self.layout.zeros {
            Zeros::Of(zero) => *zero,
            Zeros::Stored { part, order, bits, plus, turned } => {
                let [n, groups] = [self.layout.shape[0], self.groups];
                let shape = if *turned { [groups, n] } else { [n, groups] };
                let zeros = Codes { bytes: part.bytes(shards), order: *order, bits: *bits, shape };
                let stored = if *turned { zeros.get(group, row) } else { zeros.get(row, group) };
                stored.wrapping_add(*plus)
            }
        }
    }

    /// The scale of a run, whose codes tell whether it may be zero.
    fn scale(&self, shards: &[Shard], row: usize, run: &Run, codes: &[u8], zero: f32) -> Result<f32, Error> {
        let scale = self.layout.scales.get(shards, run.scale);
        let something = || {
            let codes = codes.get(run.columns.clone()).unwrap_or_default();
            codes.iter().any(|code| self.number(*code, zero) != 0.0)
        };
        if scale.is_finite() && (scale != 0.0 || !something()) {
            return Ok(scale);
        }
        let columns = &run.columns;
        let message = format!("the scale of columns {} to {} of row {row} is {scale}", columns.start, columns.end - 1);
        Err(Error::new(self.layout.scales.part.place(shards), message).help(DAMAGED))
    }

    /// Goes through the columns of a row that share a scale.
    fn each_run(&self, row: usize, mut work: impl FnMut(Run) -> Result<(), Error>) -> Result<(), Error> {
        let ([_, k], [by_row, by_group]) = (self.layout.shape, self.layout.strides);
        let entry = |row: usize, group: usize| row * by_row + group * by_group;
        match &self.layout.groups {
            Groups::Blocks { rows, columns } => (0..k).step_by(*columns).enumerate().try_for_each(|(group, first)| {
                let columns = first..(first + columns).min(k);
                work(Run { columns, scale: entry(row / rows, group), group })
            }),
            Groups::Of(groups) => {
                let mut first = 0;
                groups.chunk_by(|a, b| a == b).try_for_each(|alike| {
                    let columns = first..first + alike.len();
                    first = columns.end;
                    let group = alike.first().and_then(|g| usize::try_from(*g).ok()).unwrap_or(0);
                    work(Run { columns, scale: entry(row, group), group })
                })
            }
            Groups::Flat(len) => {
                let mut first = 0;
                while first < k {
                    let at = row * k + first;
                    let end = (first + len - at % len).min(k);
                    work(Run { columns: first..end, scale: at / len, group: 0 })?;
                    first = end;
                }
                Ok(())
            }
        }
    }

    /// The format that holds the codes as they are. A group of several of ours becomes several of the same scale.
    fn holder(&self, shards: &[Shard]) -> Option<QuantFormat> {
        let bits = match (&self.layout.numbers, &self.units) {
            (Numbers::Moved(_), _) if self.layout.bits <= 4 => 4,
            (Numbers::Moved(_), _) | (_, Some(_)) => 8,
            (Numbers::Table(..), None) => return None,
        };
        let k = self.layout.shape[1];
        let whole = self.alike(k);
        let group = [128, 64, 32].into_iter().find(|len| whole || self.alike(*len));
        let group = if whole && bits == 8 { None } else { Some(u32::try_from(group?).ok()?) };
        let symmetric = self.units.is_some() || self.is_symmetric(shards, bits);
        Some(QuantFormat { bits, group, grid: if symmetric { Grid::Symmetric } else { Grid::Affine } })
    }

    /// Whether each `len` columns, counted from the first, share a scale.
    fn alike(&self, len: usize) -> bool {
        let k = self.layout.shape[1];
        match &self.layout.groups {
            Groups::Blocks { columns, .. } => *columns >= k || len < k && columns.is_multiple_of(len),
            Groups::Of(groups) => groups.chunks(len.max(1)).all(|c| c.windows(2).all(|pair| pair[0] == pair[1])),
            Groups::Flat(each) => k.is_multiple_of(*each) && len < k && each.is_multiple_of(len),
        }
    }

    /// Whether all codes less their zero points have a sign and at most `bits` bits.
    fn is_symmetric(&self, shards: &[Shard], bits: u8) -> bool {
        let (most, half) = ((1i32 << self.layout.bits) - 1, 1i32 << (bits - 1));
        let fits = |zero: u8| i32::from(zero) <= half && most - i32::from(zero) < half;
        match &self.layout.zeros {
            Zeros::Of(zero) => fits(*zero),
            Zeros::Stored { .. } => {
                let groups = 0..self.groups;
                (0..self.layout.shape[0]).all(|row| groups.clone().all(|group| fits(self.zero(shards, row, group))))
            }
        }
    }
}

/// What to do about numbers that cannot be right.
pub(super) const DAMAGED: &str = "the weights are damaged or were not saved as they should be: download the file again, or use the unquantized checkpoint that this one was made from";
