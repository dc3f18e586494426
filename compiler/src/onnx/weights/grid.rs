//! Elements of a tensor in the order of a weight's rows, whichever way they lie.

use std::ops::Range;

/// One of the two dimensions of a weight, as a view of a tensor.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Axis {
    /// First index that the view shows.
    pub from: usize,
    /// How many it shows.
    pub len: usize,
    /// Elements from one index to the next.
    pub stride: usize,
    /// Indices that share a scale.
    pub block: usize,
    /// Entries of the scales from one block to the next; 0 if this dimension has no scales of its own.
    pub scales: usize,
    /// Entries of the zero points from one block to the next.
    pub zeros: usize,
}

impl Axis {
    /// A whole dimension without scales.
    pub(super) fn plain(len: usize, stride: usize) -> Self {
        Axis { from: 0, len, stride, block: usize::MAX, scales: 0, zeros: 0 }
    }

    /// Element of an index of the view.
    pub(super) fn at(&self, index: usize) -> usize {
        (self.from + index) * self.stride
    }

    /// Block of an index of the view.
    pub(super) fn block_of(&self, index: usize) -> usize {
        (self.from + index) / self.block
    }
}

/// Elements of a block of rows or columns that are turned together.
const ACROSS: usize = 256;
const ALONG: usize = 16;

/// Fills `out` with rows of a view. `run` gives consecutive elements of the tensor from one on. Where it is the columns that
/// lie together, they are turned in blocks that fit the cache.
pub(super) fn read<T: Copy + Default>(
    [rows, columns]: [Axis; 2],
    range: Range<usize>,
    out: &mut [T],
    run: &dyn Fn(usize, &mut [T]),
) {
    let width = columns.len;
    if width == 0 || range.is_empty() {
        return;
    }
    if columns.stride == 1 && (rows.stride == width || range.len() == 1) {
        return run(rows.at(range.start) + columns.from, out);
    }
    if columns.stride == 1 || width == 1 && rows.stride != 1 {
        for (row, out) in range.zip(out.chunks_mut(width)) {
            run(rows.at(row) + columns.at(0), out);
        }
        return;
    }
    if rows.stride == 1 {
        let mut block = [T::default(); ACROSS * ALONG];
        for first in range.clone().step_by(ACROSS) {
            let across = ACROSS.min(range.end - first);
            let out = &mut out[(first - range.start) * width..][..across * width];
            for column in (0..width).step_by(ALONG) {
                let along = ALONG.min(width - column);
                for (i, part) in block.chunks_mut(ACROSS).take(along).enumerate() {
                    run(rows.at(first) + columns.at(column + i), &mut part[..across]);
                }
                for (i, row) in out.chunks_mut(width).enumerate() {
                    let turned = row[column..column + along].iter_mut().zip(block[i..].iter().step_by(ACROSS));
                    turned.for_each(|(v, turned)| *v = *turned);
                }
            }
        }
        return;
    }
    for (row, out) in range.zip(out.chunks_mut(width)) {
        for (column, v) in out.chunks_mut(1).enumerate() {
            run(rows.at(row) + columns.at(column), v);
        }
    }
}
