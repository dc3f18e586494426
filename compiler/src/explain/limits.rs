//! What a machine can do: the limits that predictions are made from, measured once and kept as JSON.
//!
//! Invariant: a [`Machine`] that was read holds positive finite numbers only, at most [`MAX_POINTS`] of a kind, and one set
//! of limits per number of threads. A limit that a prediction asks for and that was not measured is an error, never a guess.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use dlx_ir::{DType, Error};
use dlx_runtime::cpu::Isa;
use serde::{Deserialize, Serialize};

use crate::{cache, files};

/// Version of the file's format; files of another are measured again.
const VERSION: u32 = 1;
/// Most bytes of a file, and most points of a kind in it.
const MAX_BYTES: u64 = 1 << 20;
const MAX_POINTS: usize = 4096;
/// What to do about a file that cannot be used.
const AGAIN: &str = "run `dlxc explain ARTIFACT --measure`, or give another machine's file with --machine FILE";

/// A machine and its limits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Version of the format: 1.
    pub version: u32,
    /// The CPU's own name, or its architecture where the system does not tell.
    pub cpu: String,
    /// Instruction set of the kernels.
    pub isa: String,
    /// Threads that run at the same time.
    pub cores: usize,
    /// What its threads can do, for each number of them that was measured.
    pub limits: Vec<Limits>,
}

/// What some threads can do together. Rates are in 10⁹ per second; a multiply-add is two operations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// How many threads.
    pub threads: usize,
    /// Microseconds of a parallel region that does nothing.
    pub region_us: f64,
    /// Reading memory over and over, by how much of it.
    pub reads: Vec<Reading>,
    /// Products of some rows with packed weights.
    pub linear: Vec<Product>,
    /// Turning rows into what products read: norm, and codes for integer products.
    pub prepare: Vec<PerValue>,
    /// Attention.
    pub attention: Vec<Attention>,
    /// Everything else, by op.
    pub rows: Vec<PerValue>,
}

/// Reading the same bytes again and again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reading {
    /// How many bytes.
    pub bytes: u64,
    /// At which rate.
    pub gbs: f64,
}

/// Products of some rows with a weight, without preparing the rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Product {
    /// Format of the weight.
    pub weights: String,
    /// How many rows.
    pub rows: usize,
    /// Operations when the weight is in a cache.
    pub cached_gops: f64,
    /// Operations when it comes from memory, out of a mapped file.
    pub streamed_gops: f64,
}

/// Attention of some rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attention {
    /// Element type of the caches.
    pub cache: String,
    /// Query rows of one KV head: rows times the query heads that share it.
    pub rows: usize,
    /// Operations when keys and values are in a cache.
    pub cached_gflops: f64,
    /// Operations when they come from memory.
    pub streamed_gflops: f64,
    /// Nanoseconds of a query row of one head besides those, on all threads together.
    pub row_ns: f64,
}

/// Work whose time goes with the numbers that it makes or reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PerValue {
    /// An op of the IR, or what is done: `int8` and `float` of `prepare`; `swiglu` and `statistics` behind products.
    pub op: String,
    /// How many rows.
    pub rows: usize,
    /// Nanoseconds of a number, on all threads together.
    pub ns: f64,
}

impl Machine {
    /// This machine, of which nothing has been measured yet.
    ///
    /// # Errors
    /// When `DLX_ISA` names no instruction set that it has.
    pub fn here() -> Result<Self, Error> {
        let isa = Isa::from_env().map_err(|e| Error::new("", e))?.to_string();
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let name = info.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':'));
        let cpu = name.map_or(std::env::consts::ARCH, |(_, name)| name.trim()).to_owned();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Machine { version: VERSION, cpu, isa, cores, limits: Vec::new() })
    }

    /// Whether both are the same kind of machine.
    pub fn is(&self, other: &Machine) -> bool {
        (&self.cpu, &self.isa, self.cores) == (&other.cpu, &other.isa, other.cores)
    }

    /// Where the limits of such a machine are kept.
    ///
    /// # Errors
    /// When there is no directory to keep them in.
    pub fn path(&self) -> Result<PathBuf, Error> {
        let key = blake3::hash(format!("{} {} {}", self.cpu, self.isa, self.cores).as_bytes()).to_hex();
        let dir = cache::own().ok_or_else(|| {
            Error::new("DLXC_CACHE", "is not set, and the user has no cache directory to keep the machine's limits in")
                .help("set DLXC_CACHE to a directory that can be written, or give a file with --machine FILE")
        })?;
        Ok(dir.join(format!("machine-{}-{}.json", self.isa, &key[..12])))
    }

    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, is of another version, or holds what no machine can do.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let bad = |message: String| Error::new(path.display(), message).help(AGAIN);
        let file = std::fs::File::open(path).map_err(|e| bad(format!("cannot be read: {e}")))?;
        let mut text = String::new();
        let read = file.take(MAX_BYTES + 1).read_to_string(&mut text);
        let read = read.map_err(|e| bad(format!("cannot be read: {e}")))? as u64;
        if read > MAX_BYTES {
            return Err(bad(format!("has more than {MAX_BYTES} bytes, and limits need far less")));
        }
        #[derive(Deserialize)]
        struct Peek {
            version: u32,
        }
        let broken = |e: serde_json::Error| bad(format!("is no file of a machine's limits: {e}"));
        let Peek { version } = serde_json::from_str(&text).map_err(broken)?;
        if version != VERSION {
            return Err(bad(format!("has limits of version {version}, and this dlxc reads version {VERSION}")));
        }
        let machine: Machine = serde_json::from_str(&text).map_err(broken)?;
        machine.check().map_err(bad)?;
        Ok(machine)
    }

    /// Writes it beside its place and renames it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let failed = |e: std::io::Error| {
            Error::new(path.display(), format!("cannot be written: {e}"))
                .help("set DLXC_CACHE to a directory that can be written, or give a file with --machine FILE")
        };
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::create_dir_all(parent).map_err(failed)?;
        let text = serde_json::to_string_pretty(self).map_err(|e| failed(e.into()))?;
        files::write(path, format!("{text}\n").as_bytes()).map_err(failed)
    }

    /// What that many threads can do.
    pub fn of(&self, threads: usize) -> Option<&Limits> {
        self.limits.iter().find(|l| l.threads == threads)
    }

    /// Puts limits in the place of those of as many threads.
    pub fn put(&mut self, limits: Limits) {
        self.limits.retain(|l| l.threads != limits.threads);
        self.limits.push(limits);
        self.limits.sort_by_key(|l| l.threads);
    }

    fn check(&self) -> Result<(), String> {
        for (i, limits) in self.limits.iter().enumerate() {
            let place = |what: &str| format!("limits of {} threads: {what}", limits.threads);
            if !(1..=1024).contains(&limits.threads) || self.limits[..i].iter().any(|l| l.threads == limits.threads) {
                return Err(place("that number is given twice, or is not 1 to 1024"));
            }
            limits.check().map_err(|e| place(&e))?;
        }
        Ok(())
    }
}

impl Limits {
    fn check(&self) -> Result<(), String> {
        let lists = [self.reads.len(), self.linear.len(), self.prepare.len(), self.attention.len(), self.rows.len()];
        if lists.iter().any(|len| !(1..=MAX_POINTS).contains(len)) {
            return Err(format!("a list is empty, or longer than {MAX_POINTS}"));
        }
        let per_value = |list: &'static str, points: &[PerValue]| {
            let point = move |p: &PerValue| (format!("{list} {} of {} rows", p.op, p.rows), p.rows, vec![p.ns]);
            points.iter().map(point).collect::<Vec<_>>()
        };
        let reads = self.reads.iter().map(|r| {
            (format!("reads of {} bytes", r.bytes), usize::try_from(r.bytes).unwrap_or(usize::MAX), vec![r.gbs])
        });
        let linear = self.linear.iter().map(|p| {
            (format!("linear {} of {} rows", p.weights, p.rows), p.rows, vec![p.cached_gops, p.streamed_gops])
        });
        let attention = self.attention.iter().map(|a| {
            let rates = vec![a.cached_gflops, a.streamed_gflops, a.row_ns];
            (format!("attention {} of {} rows", a.cache, a.rows), a.rows, rates)
        });
        let one = [("region_us".to_owned(), 1, vec![self.region_us])];
        let points = one.into_iter().chain(reads).chain(linear).chain(attention);
        let points = points.chain(per_value("prepare", &self.prepare)).chain(per_value("rows", &self.rows));
        for (what, rows, numbers) in points {
            if rows == 0 {
                return Err(format!("{what}: is of nothing"));
            }
            if let Some(n) = numbers.iter().find(|n| !(n.is_finite() && **n > 0.0)) {
                return Err(format!("{what}: {n} is not a positive number"));
            }
        }
        Ok(())
    }

    /// Bytes up to which memory that is read again comes from a cache: the largest piece that was read at a rate nearer to
    /// the best than to that of the largest piece, on a scale of ratios.
    pub fn cache_bytes(&self) -> u64 {
        let memory = self.memory_gbs();
        let best = self.reads.iter().map(|r| r.gbs).fold(memory, f64::max);
        let cached = self.reads.iter().filter(|r| r.gbs > (best * memory).sqrt());
        cached.map(|r| r.bytes).max().unwrap_or(0)
    }

    /// Rate of reading memory that no cache holds: that of the largest piece.
    pub fn memory_gbs(&self) -> f64 {
        self.reads.iter().max_by_key(|r| r.bytes).map_or(1.0, |r| r.gbs)
    }

    /// Rate of reading `bytes` that are read again and again.
    pub fn read_gbs(&self, bytes: u64) -> f64 {
        if bytes > self.cache_bytes() {
            return self.memory_gbs();
        }
        let holds = self.reads.iter().filter(|r| r.bytes >= bytes).min_by_key(|r| r.bytes);
        holds.map_or_else(|| self.memory_gbs(), |r| r.gbs)
    }

    /// Seconds of an element of a weight times this many rows.
    ///
    /// # Errors
    /// When the format was not measured.
    pub fn element(&self, weights: DType, rows: usize, from: Source) -> Result<f64, Error> {
        let name = weights.to_string();
        let points = self.linear.iter().filter(|p| p.weights == name);
        let points = points.map(|p| {
            let gops = if from == Source::Memory { p.streamed_gops } else { p.cached_gops };
            (p.rows, 2e-9 * p.rows as f64 / gops)
        });
        curve(points, rows).ok_or_else(|| self.missing(&format!("products with {name} weights")))
    }

    /// Seconds of preparing one number of this many rows for products with such weights.
    ///
    /// # Errors
    /// When that was not measured.
    pub fn prepare(&self, weights: DType, rows: usize) -> Result<f64, Error> {
        let op = if matches!(weights, DType::Quant(_)) { "int8" } else { "float" };
        self.per_value(&self.prepare, op, rows, "preparing rows as")
    }

    /// Seconds of one number that an op makes of this many rows.
    ///
    /// # Errors
    /// When the op was not measured.
    pub fn value(&self, op: &str, rows: usize) -> Result<f64, Error> {
        self.per_value(&self.rows, op, rows, "the op")
    }

    fn per_value(&self, points: &[PerValue], op: &str, rows: usize, what: &str) -> Result<f64, Error> {
        // The time of all rows is what grows steadily with them, not that of one number.
        let points = points.iter().filter(|p| p.op == op).map(|p| (p.rows, 1e-9 * p.ns * p.rows as f64));
        let all = curve(points, rows).ok_or_else(|| self.missing(&format!("{what} `{op}`")))?;
        Ok(all / rows.max(1) as f64)
    }

    /// Seconds of attention of this many query rows of a KV head: of one multiply-add, and of one query row besides.
    ///
    /// # Errors
    /// When caches of that type were not measured.
    pub fn attention(&self, cache: DType, rows: usize, from: Source) -> Result<(f64, f64), Error> {
        let name = cache.to_string();
        let points = || self.attention.iter().filter(|p| p.cache == name);
        let rate = |p: &Attention| if from == Source::Memory { p.streamed_gflops } else { p.cached_gflops };
        let products = curve(points().map(|p| (p.rows, 2e-9 * p.rows as f64 / rate(p))), rows);
        let besides = curve(points().map(|p| (p.rows, 1e-9 * p.row_ns * p.rows as f64)), rows);
        let (products, besides) =
            products.zip(besides).ok_or_else(|| self.missing(&format!("attention on {name} caches")))?;
        Ok((products / rows.max(1) as f64, besides / rows.max(1) as f64))
    }

    fn missing(&self, what: &str) -> Error {
        Error::new(format!("limits of {} threads", self.threads), format!("they say nothing of {what}")).help(AGAIN)
    }
}

/// Where what is read again and again comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// From a cache of the CPU.
    Cache,
    /// From memory.
    Memory,
}

/// A time at `rows` from times at other numbers of rows: on the line between its neighbors; beyond the last, in
/// proportion to it; before the first, as long as it. `None` without points.
fn curve(points: impl Iterator<Item = (usize, f64)>, rows: usize) -> Option<f64> {
    let mut points: Vec<(usize, f64)> = points.collect();
    points.sort_by_key(|(rows, _)| *rows);
    let above = points.iter().position(|(at, _)| *at >= rows);
    Some(match above {
        Some(0) => points[0].1,
        Some(i) => {
            let ((low, from), (high, to)) = (points[i - 1], points[i]);
            from + (to - from) * (rows - low) as f64 / (high - low) as f64
        }
        None => {
            let (last, time) = points.last()?;
            time * rows as f64 / *last as f64
        }
    })
}

#[cfg(test)]
pub(super) mod tests;
