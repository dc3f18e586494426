//! Memory of the CPU executor: the arena of values and the buffers of states, zeroed and aligned to cache lines.
//!
//! Memory is reserved at load and touched when first written, so a long context costs nothing until it is used. That is
//! also the rule for sizes that a hostile program declares: what the system does not reserve is [`LoadError::Memory`], and
//! what it reserves is filled only by rows that somebody feeds, each of them no wider than the weights in the file.
#![allow(unsafe_code, reason = "aligned zeroed memory, and disjoint slices of it")]

use super::error::LoadError;
use super::{KvShape, k_state_bytes, kv_row_parts, v_state_bytes};
use crate::exec::CacheRow;
use dlx_ir::{DType, MAX_SPANS, SPAN_FIELDS, State, Value, spans_type};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::Range;
use std::ptr::NonNull;

const ALIGN: usize = 64;

/// Zeroed, aligned bytes that do not move.
struct Buffer {
    /// What was allocated: up to `ALIGN` bytes more than asked for, at the allocator's own alignment. An over-aligned zeroed
    /// allocation would be cleared by hand, touching every page.
    base: NonNull<u8>,
    layout: Layout,
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the buffer owns its bytes like a `Box<[u8]>`.
unsafe impl Send for Buffer {}
// SAFETY: shared access only reads, except through `Arena::floats_mut`, whose callers promise exclusivity.
unsafe impl Sync for Buffer {}

impl Buffer {
    fn new(len: usize, what: &str) -> Result<Self, LoadError> {
        let failed = || LoadError::Memory { what: what.to_owned(), bytes: len };
        let size = len.checked_add(ALIGN).ok_or_else(failed)?;
        let layout = Layout::from_size_align(size, align_of::<u64>()).map_err(|_| failed())?;
        // SAFETY: the layout has a positive size.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(failed)?;
        let skip = base.as_ptr().align_offset(ALIGN);
        // SAFETY: aligning a byte pointer to 64 skips fewer than the 64 bytes that were added.
        let start = unsafe { base.add(skip) };
        Ok(Buffer { base, layout, start, len })
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: `start` is followed by `len` initialised bytes that the buffer owns.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
    }
}

/// Working memory of the kernels.
pub(super) struct Scratch(Buffer);

impl Scratch {
    pub(super) fn new(words: usize) -> Result<Self, LoadError> {
        Buffer::new(words.saturating_mul(4), "scratch").map(Scratch)
    }

    /// Its bytes.
    pub(super) fn len(&self) -> usize {
        self.0.len
    }

    pub(super) fn words_mut(&mut self) -> &mut [u32] {
        // SAFETY: initialised bytes, aligned to 64, any bits are a u32, and `self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.0.start.as_ptr().cast(), self.0.len / 4) }
    }
}

/// Place of a value in the arena.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    /// First byte.
    pub offset: usize,
    /// Elements per row, 1 for a vector; of a table of spans, all of them.
    pub width: usize,
    /// Whether it has the rows of the call; the table of spans does not.
    pub rows: bool,
    /// Whether the elements are f32 rather than i32.
    pub float: bool,
}

impl Slot {
    /// The slot of a planned value of 4-byte elements that has `rows` rows or is a table of spans.
    pub(super) fn of(value: &Value, rows: usize) -> Option<Self> {
        let offset = usize::try_from(value.slot?).ok()?;
        let float = match value.ty.dtype {
            DType::F32 => true,
            DType::I32 => false,
            _ => return None,
        };
        match value.ty.shape()?[..] {
            _ if value.ty == spans_type() => Some(Slot { offset, width: SPAN_FIELDS * MAX_SPANS, rows: false, float }),
            [r] if r == rows => Some(Slot { offset, width: 1, rows: true, float }),
            [r, width] if r == rows => Some(Slot { offset, width, rows: true, float }),
            _ => None,
        }
    }

    fn len(self, live: usize) -> usize {
        if self.rows { self.width * live } else { self.width }
    }
}

/// The values of one entry at a time.
pub(super) struct Arena(Buffer);

impl Arena {
    pub(super) fn new(bytes: usize) -> Result<Self, LoadError> {
        Buffer::new(bytes, "activations").map(Arena)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len
    }

    /// Start of the first `live` rows of a slot and their number of elements, checked against the arena.
    fn part(&self, slot: Slot, live: usize) -> (*mut u8, usize) {
        let len = slot.len(live);
        assert!(slot.offset <= self.0.len && len * 4 <= self.0.len - slot.offset, "a slot inside the arena");
        // SAFETY: inside the buffer, as just checked.
        (unsafe { self.0.start.as_ptr().add(slot.offset) }, len)
    }

    /// The first `live` rows of an f32 value.
    pub(super) fn floats(&self, slot: Slot, live: usize) -> &[f32] {
        let (start, len) = self.part(slot, live);
        // SAFETY: initialised, in bounds, and slots are multiples of 64 bytes (verified) in a 64-byte aligned buffer.
        unsafe { std::slice::from_raw_parts(start.cast(), len) }
    }

    /// The first `live` rows of an i32 value.
    pub(super) fn ints(&self, slot: Slot, live: usize) -> &[i32] {
        let (start, len) = self.part(slot, live);
        // SAFETY: as for `floats`.
        unsafe { std::slice::from_raw_parts(start.cast(), len) }
    }

    /// The first `live` rows of an f32 value, to be written.
    ///
    /// # Safety
    /// No other reference to any of these bytes is alive.
    #[allow(clippy::mut_from_ref, reason = "the caller promises that slots in use are disjoint")]
    pub(super) unsafe fn floats_mut(&self, slot: Slot, live: usize) -> &mut [f32] {
        let (start, len) = self.part(slot, live);
        // SAFETY: as for `floats`; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(start.cast(), len) }
    }

    /// The first `live` rows of an i32 value, to be written.
    ///
    /// # Safety
    /// No other reference to any of these bytes is alive.
    #[allow(clippy::mut_from_ref, reason = "the caller promises that slots in use are disjoint")]
    pub(super) unsafe fn ints_mut(&self, slot: Slot, live: usize) -> &mut [i32] {
        let (start, len) = self.part(slot, live);
        // SAFETY: as for `floats`; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(start.cast(), len) }
    }

    /// Writes elements of an i32 parameter from element `first` on.
    pub(super) fn write(&mut self, slot: Slot, first: usize, values: &[i32]) {
        // SAFETY: `self` is exclusive.
        let ints = unsafe { self.ints_mut(slot, first + values.len()) };
        ints[first..first + values.len()].copy_from_slice(values);
    }
}

/// Bytes of a state; for a cache, of one slot.
///
/// # Errors
/// A state in a form that the CPU does not keep.
pub(super) fn state_bytes(state: &State) -> Result<usize, LoadError> {
    let dims = state.ty.shape().unwrap_or_default();
    let bytes = match (&dims[..], state.ty.layout.as_deref()) {
        (&[..], Some("cpu.k16")) => kv_shape(state.ty.dtype, &dims).and_then(k_state_bytes),
        (&[..], Some("cpu.v")) => kv_shape(state.ty.dtype, &dims).and_then(v_state_bytes),
        (&[_, _], None) if state.ty.dtype == DType::F32 => state.ty.bytes(),
        _ => None,
    };
    // Rows are numbered by i32 scalars.
    let bytes = bytes.filter(|_| dims.first().is_some_and(|rows| *rows <= i32::MAX as usize));
    let place = || format!("state @{}: {} is not a form that the CPU keeps", state.name, state.ty);
    bytes.ok_or_else(|| LoadError::Program(place()))
}

/// The shape of a cache.
pub(super) fn kv_shape(dtype: DType, dims: &[usize]) -> Option<KvShape> {
    let &[max_seq, kv_heads, head_dim] = dims else { return None };
    Some(KvShape { dtype, max_seq, kv_heads, head_dim })
}

/// The bytes of one state: for a cache, its slots one after the other.
pub(super) struct StateBuffer {
    buffer: Buffer,
    name: String,
    dtype: DType,
    dims: Vec<usize>,
    /// Bytes of a slot.
    slot: usize,
}

impl StateBuffer {
    pub(super) fn new(state: &State) -> Result<Self, LoadError> {
        let name = format!("state @{}", state.name);
        let dims = state.ty.shape().unwrap_or_default();
        let mut new = StateBuffer { buffer: Buffer::new(0, &name)?, name, dtype: state.ty.dtype, dims, slot: 0 };
        new.slot = state_bytes(state)?;
        new.buffer = Buffer::new(new.slot, &new.name)?;
        Ok(new)
    }

    /// The same state, empty, with room for `slots` sequences if it is a cache.
    pub(super) fn with_slots(&self, slots: usize) -> Result<Self, LoadError> {
        let bytes = self.slot.saturating_mul(if self.is_rows() { 1 } else { slots });
        let buffer = Buffer::new(bytes, &self.name)?;
        Ok(StateBuffer { buffer, name: self.name.clone(), dims: self.dims.clone(), ..*self })
    }

    pub(super) fn len(&self) -> usize {
        self.buffer.len
    }

    pub(super) fn kv_shape(&self) -> KvShape {
        KvShape { dtype: self.dtype, max_seq: self.dims[0], kv_heads: self.dims[1], head_dim: self.dims[2] }
    }

    /// Whether it holds plain f32 rows rather than a cache.
    pub(super) fn is_rows(&self) -> bool {
        self.dims.len() == 2
    }

    pub(super) fn rows(&self) -> usize {
        self.dims[0]
    }

    pub(super) fn width(&self) -> usize {
        self.dims[1..].iter().product()
    }

    /// A sequence's part of a cache.
    pub(super) fn slot(&self, slot: usize) -> &[u8] {
        &self.buffer.bytes()[slot * self.slot..][..self.slot]
    }

    /// A sequence's part of a cache, to be written.
    pub(super) fn slot_mut(&mut self, slot: usize) -> &mut [u8] {
        &mut self.buffer.bytes_mut()[slot * self.slot..][..self.slot]
    }

    /// Copies what some rows hold, for every head, to other rows. Both begin with a tile of interleaved rows, and whole tiles
    /// go with them.
    pub(super) fn copy_rows(&mut self, from: CacheRow, to: CacheRow, rows: usize) {
        let kv = self.kv_shape();
        let head = self.slot / kv.kv_heads;
        let parts = |at: CacheRow| kv_row_parts(kv, head, at.row..at.row + rows);
        for h in 0..kv.kv_heads {
            for (source, target) in parts(from).into_iter().zip(parts(to)) {
                let start = |slot: usize, part: &Range<usize>| slot * self.slot + h * head + part.start;
                let (source, length) = (start(from.slot, &source), source.len());
                self.buffer.bytes_mut().copy_within(source..source + length, start(to.slot, &target));
            }
        }
    }

    pub(super) fn floats(&self) -> &[f32] {
        // SAFETY: initialised bytes, aligned to 64, any bits are an f32; only f32 states are read this way.
        unsafe { std::slice::from_raw_parts(self.buffer.start.as_ptr().cast(), self.buffer.len / 4) }
    }

    pub(super) fn floats_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above, and `self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.buffer.start.as_ptr().cast(), self.buffer.len / 4) }
    }
}
