//! Threads that wait for the next parallel region awake.
//!
//! A step is some two hundred regions a few hundred microseconds apart. Handing one to a general-purpose pool costs 13–20 µs
//! each time its threads have gone to sleep in between; these spin for a moment before they do.
//!
//! Invariants: a region never waits for a thread that has not entered it, so a thread that the system does not schedule
//! costs nothing but its share; when a region returns, no thread is inside it; nothing is allocated after the start.
#![allow(unsafe_code, reason = "a region's work is borrowed from its caller's stack")]

use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long a thread burns cycles, and how long it stays awake in all, before it sleeps.
const SPIN: Duration = Duration::from_micros(20);
const AWAKE: Duration = Duration::from_micros(300);

/// The gate's bits: number of threads inside, whether more may enter, and the number of the region.
const INSIDE: u64 = 0xffff;
const OPEN: u64 = 1 << 16;
const REGION: u64 = 1 << 17;

type Work<'w> = dyn Fn(usize) + Sync + 'w;

thread_local! {
    /// Whether this thread is inside a region of some pool; the threads of a pool always are.
    static IN_REGION: Cell<bool> = const { Cell::new(false) };
}

/// Threads for parallel regions: the caller's own and `threads - 1` more.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// One region at a time.
    turn: Mutex<()>,
}

struct Shared {
    gate: AtomicU64,
    /// What the open region does. Written only while nobody is inside, read only from inside.
    work: UnsafeCell<Option<*const Work<'static>>>,
    asleep: Box<[AtomicBool]>,
    panicked: AtomicBool,
    stop: AtomicBool,
}

// SAFETY: `work` is the only field that is not `Sync`; the gate orders every access to it (see `Pool::run`).
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `work` is to something `Sync` that outlives the region.
unsafe impl Send for Shared {}

impl Pool {
    /// Starts a pool of `threads` threads, counting the caller; 0 takes one per core.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let threads = if threads == 0 { thread::available_parallelism().map_or(1, usize::from) } else { threads };
        let threads = threads.min(usize::from(u16::MAX));
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(0),
            work: UnsafeCell::new(None),
            asleep: (1..threads).map(|_| AtomicBool::new(false)).collect(),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let mut pool = Pool { shared, workers: Vec::with_capacity(threads - 1), turn: Mutex::new(()) };
        for worker in 0..threads - 1 {
            let shared = Arc::clone(&pool.shared);
            let builder = thread::Builder::new().name(format!("dlx-{}", worker + 1));
            pool.workers.push(builder.spawn(move || shared.serve(worker))?);
        }
        Ok(pool)
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `work(slot)` on the calling thread with slot 0, and on every other thread that comes in time with its own
    /// number below [`Pool::threads`]. Work that must be done is handed out by `work` itself, from a counter. A region inside
    /// a region, of whatever pool, runs on its calling thread alone: the others may be waiting for that very thread.
    ///
    /// # Panics
    /// When `work` panics, on any thread.
    pub fn run(&self, work: &(dyn Fn(usize) + Sync)) {
        if self.workers.is_empty() || IN_REGION.get() {
            return work(0);
        }
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. Nobody is inside before the gate opens below; it is closed, and everybody
        // who entered has left, before this function returns, so nobody sees the pointer after `work` is gone.
        unsafe {
            let work = std::mem::transmute::<*const Work<'_>, *const Work<'static>>(std::ptr::from_ref(work));
            *shared.work.get() = Some(work);
        }
        let region = (shared.gate.load(Ordering::Relaxed) & !(INSIDE | OPEN)).wrapping_add(REGION);
        shared.gate.store(region | OPEN, Ordering::SeqCst);
        for (worker, asleep) in self.workers.iter().zip(&shared.asleep) {
            if asleep.load(Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
        IN_REGION.set(true);
        let outcome = catch_unwind(AssertUnwindSafe(|| work(0)));
        IN_REGION.set(false);
        shared.gate.fetch_and(!OPEN, Ordering::Relaxed);
        let mut wait = Wait::new();
        while shared.gate.load(Ordering::Acquire) & INSIDE != 0 {
            wait.once();
        }
        let panicked = shared.panicked.swap(false, Ordering::Relaxed);
        drop(turn);
        if let Err(payload) = outcome {
            resume_unwind(payload);
        }
        assert!(!panicked, "a thread of a parallel region panicked");
    }

    /// Calls `work` once for every number below [`Pool::threads`], each on a thread of its own if the system plays along.
    pub fn broadcast(&self, work: impl Fn(usize) + Sync) {
        let next = AtomicU64::new(0);
        let threads = self.threads() as u64;
        self.run(&|_| {
            // A thread takes one number; the caller also takes those of threads that have not come after a while.
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i < threads {
                work(i as usize);
            }
        });
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= threads {
                return;
            }
            work(i as usize);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches panics of work, so it ends in order.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// A worker's life.
    fn serve(&self, worker: usize) {
        IN_REGION.set(true);
        let mut last = 0;
        while let Some(mut gate) = self.next(worker, last) {
            last = gate / REGION;
            while gate & OPEN != 0 && gate / REGION == last {
                match self.gate.compare_exchange_weak(gate, gate + 1, Ordering::Acquire, Ordering::Relaxed) {
                    Err(now) => gate = now,
                    Ok(_) => {
                        // SAFETY: this thread is inside an open region, so the pointer was written before the gate opened
                        // and what it points to is borrowed until this thread has left.
                        let work = unsafe { (*self.work.get()).map(|w| &*w) };
                        if work.is_some_and(|work| catch_unwind(AssertUnwindSafe(|| work(worker + 1))).is_err()) {
                            self.panicked.store(true, Ordering::Relaxed);
                        }
                        self.gate.fetch_sub(1, Ordering::Release);
                        break;
                    }
                }
            }
        }
    }

    /// Waits for a region after number `last`; `None` when the pool ends.
    fn next(&self, worker: usize, last: u64) -> Option<u64> {
        let mut wait = Wait::new();
        loop {
            let gate = self.gate.load(Ordering::SeqCst);
            if self.stop.load(Ordering::SeqCst) {
                return None;
            }
            if gate / REGION != last {
                return Some(gate);
            }
            if wait.once() < AWAKE {
                continue;
            }
            // Announce first, look once more, then sleep: whoever opens the gate after that look sees the announcement.
            self.asleep[worker].store(true, Ordering::SeqCst);
            if self.gate.load(Ordering::SeqCst) / REGION == last && !self.stop.load(Ordering::SeqCst) {
                thread::park();
            }
            self.asleep[worker].store(false, Ordering::SeqCst);
        }
    }
}

/// Waiting that starts hot and cools down.
struct Wait {
    start: Option<Instant>,
    rounds: u32,
    waited: Duration,
}

impl Wait {
    fn new() -> Self {
        Wait { start: None, rounds: 0, waited: Duration::ZERO }
    }

    /// Waits a little and returns for how long it has waited in all.
    fn once(&mut self) -> Duration {
        self.rounds = self.rounds.wrapping_add(1);
        if self.waited < SPIN {
            std::hint::spin_loop();
        } else {
            thread::yield_now();
        }
        // Clocks cost more than a spin.
        if self.rounds.is_multiple_of(16) {
            self.waited = self.start.get_or_insert_with(Instant::now).elapsed();
        }
        self.waited
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    fn count(pool: &Pool, items: usize) -> usize {
        let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        pool.run(&|slot| {
            assert!(slot < pool.threads());
            while next.fetch_add(1, Ordering::Relaxed) < items {
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
        done.load(Ordering::Relaxed)
    }

    #[test]
    fn every_item_is_done_when_a_region_returns() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads).unwrap();
            assert_eq!(pool.threads(), threads);
            for i in 0..3000 {
                assert_eq!(count(&pool, i % 37), i % 37);
                if i % 500 == 0 {
                    // Long enough for the others to fall asleep.
                    thread::sleep(Duration::from_millis(2));
                }
            }
        }
    }

    #[test]
    fn slots_are_not_shared() {
        let pool = Pool::new(4).unwrap();
        let busy: Vec<_> = (0..4).map(|_| AtomicBool::new(false)).collect();
        for _ in 0..2000 {
            pool.run(&|slot| {
                assert!(!busy[slot].swap(true, Ordering::SeqCst));
                busy[slot].store(false, Ordering::SeqCst);
            });
        }
    }

    #[test]
    fn broadcast_calls_once_per_number() {
        let pool = Pool::new(3).unwrap();
        let calls: Vec<_> = (0..3).map(|_| AtomicUsize::new(0)).collect();
        for _ in 0..1000 {
            pool.broadcast(|i| {
                calls[i].fetch_add(1, Ordering::Relaxed);
            });
        }
        assert!(calls.iter().all(|c| c.load(Ordering::Relaxed) == 1000));
    }

    #[test]
    fn a_region_inside_a_region_runs_alone_and_ends() {
        let (done, finished) = std::sync::mpsc::channel();
        thread::spawn(move || {
            let (pool, other) = (Pool::new(3).unwrap(), Pool::new(2).unwrap());
            let inner = AtomicUsize::new(0);
            for _ in 0..200 {
                pool.run(&|_| {
                    pool.run(&|slot| {
                        assert_eq!(slot, 0);
                        inner.fetch_add(1, Ordering::Relaxed);
                    });
                    other.run(&|_| {
                        pool.broadcast(|_| {
                            inner.fetch_add(1, Ordering::Relaxed);
                        });
                    });
                });
            }
            assert!(catch_unwind(AssertUnwindSafe(|| pool.run(&|_| pool.run(&|_| panic!("on purpose"))))).is_err());
            assert_eq!(count(&pool, 100), 100, "a panic inside leaves the thread outside of every region");
            done.send(inner.into_inner()).unwrap();
        });
        let inner =
            finished.recv_timeout(Duration::from_secs(20)).expect("nested regions must not wait for each other");
        assert!(inner >= 200 * (1 + 3), "{inner}");
    }

    #[test]
    fn panics_reach_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2).unwrap();
        let others = |slot: usize| {
            if slot == 0 {
                thread::sleep(Duration::from_millis(20));
            } else {
                panic!("on purpose");
            }
        };
        assert!(catch_unwind(AssertUnwindSafe(|| pool.run(&others))).is_err());
        assert!(catch_unwind(AssertUnwindSafe(|| pool.run(&|_| panic!("on purpose")))).is_err());
        assert_eq!(count(&pool, 100), 100);
    }
}
