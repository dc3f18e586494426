//! Makes certificates: how much each part of a process takes.
//!
//! Everything is computed from types, plans and counts, before anything is allocated; the figure that a manifest states is
//! never used. docs/memory.md says what each part counts, and what is not counted. Invariant: a part is an upper bound, and
//! depends on nothing but the artifact and the [`Usage`].

use super::{Budget, CACHES, Certificate, DECODING, OverLimit, Part, When, add, mul};
use crate::cpu::error::LoadError;
use crate::cpu::memory::CpuMemory;
use crate::decode::DecodePolicy;
use crate::exec::RowStats;
use crate::selftest;
use crate::text::TokenizerSize;
use crate::wgpu::plan::{Plan, UPLOAD_CHUNK, UPLOAD_IN_FLIGHT};
use dlx_ir::Module;

/// Threads that a manifest's certificate is for.
pub const THREADS: usize = 16;
/// Code, constants and the heap of a program that links this crate, as `dlxc` does, beside what is counted below.
const BASE: u64 = 20 << 20;
/// What a thread of the executor or of a load touches of its stack and of its allocator.
const STACK: u64 = 128 << 10;
/// Bytes of a program in memory for each of its text, once it runs and while it is read and verified.
const PROGRAM: (u64, u64) = (4, 16);
/// Bytes of golden vectors while they are compared, for each of their text.
const GOLDEN: u64 = 4;
/// Bytes for each token of a sequence: ids, texts, offsets and masks of an encoded prompt, and of an answer.
const TOKEN: u64 = 1024;
/// Bytes of a sampler, of which each thread has one, for each token of the vocabulary: four rows, what filters keep of them,
/// and their sort keys; and a row that a shifted model remembers.
const SAMPLER: u64 = 48;
/// Bytes of a page, which rounds a buffer up.
const PAGE: u64 = 4096;
/// Name of the part that is the file but its weights.
pub const OTHERS: &str = "other sections of the file";

/// How an artifact is run.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Threads of the executor.
    pub threads: usize,
    /// Threads that load.
    pub loaders: usize,
    /// Sequences that the caches hold.
    pub slots: usize,
    /// Rows of logits that are asked for at a time.
    pub logits_rows: usize,
    /// Rows of a slot.
    pub max_seq: usize,
    /// Width of the logits.
    pub vocab: usize,
}

/// What an artifact holds besides the program: bytes of its sections.
#[derive(Clone, Copy, Debug, Default)]
pub struct Held {
    /// The weights.
    pub weights: u64,
    /// Everything else, with the header.
    pub others: u64,
    /// The text of the program.
    pub program: u64,
    /// The plan, if there is one.
    pub plan: u64,
    /// The golden vectors.
    pub golden: u64,
    /// What is known of texts besides the tokenizer.
    pub text: u64,
    /// The tokenizer.
    pub tokenizer: TokenizerSize,
}

impl Usage {
    /// One sequence with the artifact's own policy, whatever is drawn, on `threads` threads, and as many that load.
    pub fn of(policy: &DecodePolicy, max_seq: usize, vocab: usize, threads: usize) -> Self {
        let slots = if policy.cfg_scale == 0.0 { 1 } else { 2 };
        Usage { threads, loaders: threads, slots, logits_rows: 0, max_seq, vocab }.with_slots(policy, slots)
    }

    /// The same for so many slots, of one sequence or of several.
    fn with_slots(self, policy: &DecodePolicy, slots: usize) -> Self {
        let rows = slots.saturating_mul(policy.block.clamp(1, self.max_seq.max(1)));
        Usage { slots, logits_rows: rows.max(selftest::HEAD_ROWS), ..self }
    }
}

impl Certificate {
    /// That of a program for the CPU, whose weights need not be stored yet.
    ///
    /// # Errors
    /// A program that the CPU does not run.
    pub fn of_cpu(module: &Module, held: &Held, usage: &Usage) -> Result<Self, LoadError> {
        let memory = CpuMemory::of(module, usage.threads, usage.logits_rows)?;
        let buffers = PAGE * (module.states.len() as u64 + 4);
        let parts = [
            ("activations", When::Always, memory.arena),
            ("hidden states", When::Always, memory.hidden),
            ("kernels' working memory", When::Always, add(memory.scratch, buffers)),
            ("vectors", When::Always, memory.vectors),
            ("caches under test", When::Loading, memory.probed),
            (CACHES, When::Running, mul(memory.caches, usage.slots as u64)),
        ];
        Ok(Self::new("cpu", held, usage, &parts))
    }

    /// That of a plan for a graphics device. Memory of the device is counted as if it were memory of the process, as it is
    /// where both share it.
    pub fn of_wgpu(plan: &Plan, held: &Held, usage: &Usage) -> Self {
        let states = |cache| plan.states.iter().filter(move |s| s.cache == cache).map(|s| s.bytes).fold(0, add);
        let slots = usage.slots as u64;
        // More slots are allocated beside those of the load.
        let before = if slots > 1 { states(true) } else { 0 };
        let parts = [
            ("weights on the device", When::Always, plan.device_weights()),
            ("activations", When::Always, add(plan.arena, plan.inputs)),
            ("hidden states", When::Always, states(false)),
            ("results, on the device and read back", When::Always, mul(4, plan.read_back())),
            ("upload of weights", When::Loading, plan.device_weights().min((UPLOAD_CHUNK + UPLOAD_IN_FLIGHT) as u64)),
            (CACHES, When::Always, mul(states(true), slots)),
            ("caches while they grow", When::Running, before),
        ];
        Self::new("wgpu", held, usage, &parts)
    }

    fn new(target: &str, held: &Held, usage: &Usage, own: &[(&str, When, u64)]) -> Self {
        let Usage { threads, loaders, slots, logits_rows, max_seq, vocab } = *usage;
        let text = add(held.program, held.plan);
        let logits = mul(mul(logits_rows as u64, vocab as u64), size_of::<f32>() as u64);
        let stats = mul(logits_rows as u64, size_of::<RowStats>() as u64);
        let samplers = threads.clamp(1, logits_rows.max(1)) as u64;
        let sampling = mul(mul(SAMPLER, samplers), vocab as u64);
        let decoding = [logits, stats, sampling, mul(TOKEN, mul(max_seq as u64, slots as u64))];
        let reading = held.tokenizer.reading();
        let common = [
            ("weights", When::Always, held.weights),
            (OTHERS, When::Always, held.others),
            ("code and libraries", When::Always, BASE),
            ("stacks of threads", When::Always, mul(STACK, threads.saturating_add(loaders) as u64)),
            ("program", When::Always, mul(PROGRAM.0, text)),
            ("reading the program", When::Loading, mul(PROGRAM.1, text)),
            (
                "golden vectors",
                When::Loading,
                add(mul(GOLDEN, held.golden), mul(4 * selftest::HEAD_ROWS as u64, vocab as u64)),
            ),
            ("reading the tokenizer", When::Loading, reading),
            ("tokenizer and template", When::Running, add(held.tokenizer.held(), mul(PROGRAM.1, held.text))),
            (DECODING, When::Running, decoding.into_iter().fold(0, add)),
        ];
        let parts = common.iter().chain(own).filter(|(_, _, bytes)| *bytes > 0);
        let parts = parts.map(|&(name, when, bytes)| Part { name: name.into(), when, bytes }).collect();
        let mut certificate = Certificate { target: target.into(), threads, slots, total: 0, parts };
        certificate.total = certificate.sum();
        certificate
    }
}

impl Budget {
    /// The budget of a load with the artifact's own policy; with room for guidance, which runs a second sequence, if the limit
    /// has it.
    ///
    /// # Errors
    /// [`OverLimit`], or what `certify` says.
    pub(crate) fn new<E>(
        limit: u64,
        usage: Usage,
        policy: &DecodePolicy,
        certify: &dyn Fn(&Usage) -> Result<Certificate, E>,
        over: impl Fn(OverLimit) -> E,
    ) -> Result<Self, E> {
        let guided = usage.with_slots(policy, 2);
        let certificate = certify(&guided)?;
        if certificate.total <= limit {
            let certificate = certificate.with_slots(usage.slots);
            return Ok(Budget { limit, certificate, logits_rows: guided.logits_rows });
        }
        let certificate = certify(&usage)?;
        certificate.within(limit).map_err(over)?;
        Ok(Budget { limit, certificate, logits_rows: usage.logits_rows })
    }
}
