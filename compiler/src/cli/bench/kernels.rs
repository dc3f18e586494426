//! `dlxc bench --kernels`: products in every weight format with every kernel that this CPU can run.
//!
//! The formats and kernels come from the table that programs run with. Each product has the shape of a layer of a small
//! model; its weights take turns with others, so that a few rows really stream them from memory.

use std::time::Instant;

use dlx_ir::{DType, Error};
use dlx_runtime::cpu::{
    Ctx, Epilogue, Isa, PackedWeight, Pool, kernel_variants, kernels, linear, linear_scratch_words, packed_bytes,
    read_once,
};

use super::measure::{Timing, Work, time};
use super::{Failure, KernelReport, Limits};
use crate::cli::terminal;
use crate::explain::finite_weights;

/// Outputs and inputs of the product.
const SHAPE: (usize, usize) = (2048, 4096);
/// Bytes of weights that take turns: more than the caches of most machines hold, and several weights of any format.
const WEIGHT_BYTES: usize = 256 << 20;
/// Share of the time for a line of an artifact that a product gets; there are many of them.
const TIME_SHARE: f64 = 0.1;

/// One product, timed.
pub(super) struct Product {
    pub(super) format: DType,
    pub(super) rows: usize,
    pub(super) threads: usize,
    pub(super) isa: Isa,
    pub(super) time: Timing,
    pub(super) work: Work,
}

impl Product {
    /// The limit of its arithmetic among those of the machine.
    pub(super) fn peak(&self, limits: &Limits) -> Option<f64> {
        if matches!(self.format, DType::Quant(_)) { limits.int8_gops } else { limits.f32_gops }
    }
}

/// Times the products of `rows` rows on every number of threads.
///
/// # Errors
/// When `DLX_ISA` is wrong, or threads cannot be had; on Ctrl-C.
pub(super) fn measure(threads: &[usize], rows: &[usize], seconds: f64) -> Result<KernelReport, Failure> {
    let used = Isa::from_env().map_err(|e| Error::new("", e))?;
    let bytes = finite_weights(WEIGHT_BYTES);
    let mut report = KernelReport { isa: used, limits: Vec::new(), products: Vec::new() };
    for &threads in threads {
        let pool = Pool::new(threads);
        let pool = pool.map_err(|e| Error::new("", format!("cannot start {threads} threads: {e}")))?;
        let threads = pool.threads();
        for variant in kernel_variants() {
            let Ok(kernels) = kernels(variant.isa) else { continue };
            let ctx = Ctx { kernels, pool: &pool };
            for &format in variant.formats {
                for &rows in rows {
                    if terminal::interrupted() {
                        return Err(Failure::Interrupted);
                    }
                    let (time, work) = product(&ctx, format, rows, &bytes, TIME_SHARE * seconds);
                    report.products.push(Product { format, rows, threads, isa: variant.isa, time, work });
                }
            }
        }
        let mut reads = [(); 5].map(|()| read_once(&pool, &bytes));
        reads.sort_unstable();
        report.limits.push(Limits::measure(&pool, bytes.len() as f64 / reads[2].as_secs_f64() / 1e9));
    }
    Ok(report)
}

fn product(ctx: &Ctx<'_>, format: DType, rows: usize, bytes: &[u8], seconds: f64) -> (Timing, Work) {
    let (n, k) = SHAPE;
    let weight_bytes = packed_bytes(format, n, k).expect("the formats of the kernel table are packed ones");
    let aligned = &bytes[bytes.as_ptr().align_offset(64)..];
    let mut weights = aligned.chunks_exact(weight_bytes).cycle();
    let mut next = || {
        let bytes = weights.next().expect("there is room for several weights");
        PackedWeight::new(format, n, k, bytes).expect("a chunk has the size of a weight")
    };
    let x: Vec<f32> = (0..rows * k).map(|i| ((i * 37) % 101) as f32 * 0.02 - 1.0).collect();
    let mut out = vec![0.0; rows * n];
    let mut scratch = vec![0; linear_scratch_words(rows, &[next()])];
    let timing = time(seconds, || {
        let start = Instant::now();
        linear(ctx, &x, rows, None, &[next()], &[], Epilogue::Store, &mut [&mut out], &mut scratch);
        Ok::<_, std::convert::Infallible>(start.elapsed())
    });
    let Ok(timing) = timing;
    (timing, Work { weight_bytes: weight_bytes as u64, products: (rows * n * k) as u64 })
}
