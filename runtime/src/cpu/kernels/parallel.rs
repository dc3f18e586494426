//! Threads: one fork/join region over numbered items, and outputs that several threads write.
//!
//! Invariant: which thread computes an item never changes its result, so the schedule is free to be dynamic. A region
//! never waits for a thread that has not started: items are taken from one counter, and the caller takes its share.

use super::Kernels;
use crate::cpu::pool::Pool;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Most stretches that the items of a region are cut into; more threads share them.
const MAX_STRETCHES: usize = 64;

/// What every op needs besides its operands: the kernels to use and the threads to run on.
#[derive(Clone, Copy)]
pub struct Ctx<'a> {
    /// Kernels of the chosen instruction set.
    pub kernels: &'static Kernels,
    /// Thread pool of the parallel regions.
    pub pool: &'a Pool,
}

impl Ctx<'_> {
    /// Number of threads; working memory that each thread needs is multiplied by it.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Runs `work` over `0..items` in ranges of up to `grain`, in no particular order, on all threads.
    ///
    /// Every thread walks through its own stretch of the items, and then helps with what is left of the others': items of
    /// one stretch are neighbors in memory, which is read half again as fast in long runs as in scattered ones. `work` also
    /// gets a slot number below [`Ctx::threads`] that no other range running at the same time has.
    pub(crate) fn parallel(&self, items: usize, grain: usize, work: impl Fn(usize, Range<usize>) + Sync) {
        let grain = grain.max(1);
        let stretches = self.threads().min(MAX_STRETCHES).min(items / grain);
        if stretches <= 1 {
            if items > 0 {
                work(0, 0..items);
            }
            return;
        }
        let start = |stretch: usize| items / stretches * stretch + stretch.min(items % stretches);
        let next: [AtomicUsize; MAX_STRETCHES] = std::array::from_fn(|s| AtomicUsize::new(start(s.min(stretches))));
        self.pool.run(&|slot| {
            for stretch in (0..stretches).map(|s| (slot + s) % stretches) {
                let end = start(stretch + 1);
                loop {
                    let first = next[stretch].fetch_add(grain, Ordering::Relaxed);
                    if first >= end {
                        break;
                    }
                    work(slot, first..(first + grain).min(end));
                }
            }
        });
    }

    /// Runs `work(row, values)` for every row of `out`, on several threads when there is enough to do.
    pub(crate) fn rows(&self, out: &mut [f32], row_len: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
        const MIN_VALUES: usize = 4096;
        let rows = out.len().checked_div(row_len).unwrap_or(0);
        let out = SharedMut::new(out);
        self.parallel(rows, MIN_VALUES.div_ceil(row_len.max(1)), |_, range| {
            for row in range {
                // SAFETY: each row is visited once, and rows do not overlap.
                work(row, unsafe { out.slice(row * row_len, row_len) });
            }
        });
    }
}

/// A mutable slice whose disjoint parts are written by several threads.
#[derive(Clone, Copy)]
pub(super) struct SharedMut<'a, T> {
    start: *mut T,
    len: usize,
    owner: PhantomData<&'a mut [T]>,
}

// SAFETY: it is a `&mut [T]` that is taken apart; `slice` demands that parts do not overlap.
unsafe impl<T: Send> Send for SharedMut<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    pub(super) fn new(slice: &'a mut [T]) -> Self {
        SharedMut { start: slice.as_mut_ptr(), len: slice.len(), owner: PhantomData }
    }

    /// Hints that element `at` is about to be written.
    #[inline(always)]
    pub(super) fn prefetch(&self, at: usize) {
        prefetch_line(self.start.wrapping_add(at).cast());
    }

    /// The part `at..at + len`.
    ///
    /// # Safety
    /// No other live reference covers any of it.
    pub(super) unsafe fn slice(&self, at: usize, len: usize) -> &'a mut [T] {
        assert!(at <= self.len && len <= self.len - at, "part {at}+{len} of {}", self.len);
        // SAFETY: in bounds as just checked; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }
}

/// Asks for the cache line at an address, which need not be valid.
#[inline(always)]
pub(super) fn prefetch_line(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86-64, and a prefetch of any address has no effect on the program.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
