//! The quality card: how far an artifact's distributions are from those of a baseline, on the baseline's own trajectories.
//!
//! [`Paired`] is an executor that runs every call on both models and answers with the baseline, so that an ordinary session
//! decodes as the baseline would while both models see the same states; what they think of each masked row is compared.

use std::path::Path;
use std::sync::{Arc, Mutex};

use dlx_ir::Error;
use dlx_runtime::AnyExecutor;
use dlx_runtime::artifact::{self, Artifact};
use dlx_runtime::exec::{ExecError, Executor, RowStats, Span};
use dlx_runtime::manifest::{Manifest, Quality};

use crate::rewrite;

/// Sums over the rows compared so far.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    rows: u64,
    flips: u64,
    kl: f64,
    kl_max: f64,
}

impl Tally {
    /// The card, given the forward passes that both needed for the same questions.
    pub fn quality(&self, questions: usize, forwards: usize, baseline_forwards: usize) -> Quality {
        let rows = self.rows.max(1) as f64;
        Quality {
            questions,
            rows: self.rows,
            mean_kl: self.kl / rows,
            max_kl: self.kl_max,
            flip_rate: self.flips as f64 / rows,
            forwards,
            baseline_forwards,
        }
    }

    fn add(&mut self, baseline: &[f32], other: &[f32]) {
        let (p, q) = (log_softmax(baseline), log_softmax(other));
        let kl: f64 = p.iter().zip(&q).map(|(p, q)| libm::exp(*p) * (p - q)).sum();
        self.rows += 1;
        self.kl += kl.max(0.0);
        self.kl_max = self.kl_max.max(kl);
        self.flips += u64::from(argmax(baseline) != argmax(other));
    }
}

/// Two models in step; see the module.
pub struct Paired {
    /// The model that answers.
    pub baseline: AnyExecutor,
    /// The model that is compared with it.
    pub other: AnyExecutor,
    /// Where the comparison goes.
    pub tally: Arc<Mutex<Tally>>,
}

impl Paired {
    fn compare(&mut self, rows: &[usize]) -> Result<(), ExecError> {
        let vocab = self.baseline.vocab();
        let (mut ours, mut theirs) = (vec![0.0; vocab], vec![0.0; vocab]);
        for row in rows {
            self.baseline.logits(&[*row], &mut ours)?;
            self.other.logits(&[*row], &mut theirs)?;
            self.tally.lock().expect("no holder panics").add(&ours, &theirs);
        }
        Ok(())
    }
}

impl Executor for Paired {
    fn max_seq(&self) -> usize {
        self.baseline.max_seq().min(self.other.max_seq())
    }

    fn vocab(&self) -> usize {
        self.baseline.vocab()
    }

    fn step_buckets(&self) -> &[usize] {
        let (ours, theirs) = (self.baseline.step_buckets(), self.other.step_buckets());
        if ours.last() <= theirs.last() { ours } else { theirs }
    }

    fn slots(&self) -> usize {
        self.baseline.slots().min(self.other.slots())
    }

    fn reserve(&mut self, slots: usize) -> Result<(), ExecError> {
        self.baseline.reserve(slots)?;
        self.other.reserve(slots)
    }

    fn step(&mut self, spans: &[Span<'_>]) -> Result<(), ExecError> {
        self.baseline.step(spans)?;
        self.other.step(spans)
    }

    fn head(&mut self, rows: &[usize], out: &mut [RowStats]) -> Result<(), ExecError> {
        self.compare(rows)?;
        self.baseline.head(rows, out)
    }

    fn logits(&mut self, rows: &[usize], out: &mut [f32]) -> Result<(), ExecError> {
        self.compare(rows)?;
        self.baseline.logits(rows, out)
    }
}

/// Rewrites an artifact with a card in its manifest; every other section keeps its checksum.
///
/// # Errors
/// When the artifact is damaged, or cannot be read or written; it is then what it was.
pub fn write_card(path: &Path, quality: Quality) -> Result<(), Error> {
    let failed = |e: &dyn std::fmt::Display| Error::new("", e.to_string());
    let artifact = Artifact::open(path).map_err(|e| failed(&e))?;
    let manifest = dlx_runtime::read_manifest(&artifact).map_err(|e| failed(&e))?;
    let manifest = Manifest { quality: Some(quality), ..manifest };
    let json = serde_json::to_vec_pretty(&manifest).map_err(|e| failed(&e))?;
    rewrite::with_section(&artifact, path, artifact::MANIFEST, &json).map(drop)
}

fn argmax(x: &[f32]) -> usize {
    x.iter().enumerate().fold(0, |best, (i, v)| if *v > x[best] { i } else { best })
}

fn log_softmax(x: &[f32]) -> Vec<f64> {
    let max = f64::from(x[argmax(x)]);
    let sum: f64 = x.iter().map(|v| libm::exp(f64::from(*v) - max)).sum();
    x.iter().map(|v| f64::from(*v) - max - libm::log(sum)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_does_not_sign_damaged_weights() {
        let dir = tempfile::tempdir().unwrap();
        let (path, clean) = (dir.path().join("m.dlxa"), dir.path().join("clean.dlxa"));
        let model = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/models/sdar-tiny"));
        let options = crate::options::CompileOptions { max_seq: Some(64), ..Default::default() };
        let cancel = std::sync::atomic::AtomicBool::new(false);
        crate::driver::compile(model, &clean, &options, &Silent, &cancel).unwrap();
        let quality = Tally::default().quality(1, 1, 1);

        let mut bytes = std::fs::read(&clean).unwrap();
        let at = usize::try_from(Artifact::open(&clean).unwrap().sections()[0].offset).unwrap() + 1000;
        bytes[at] ^= 4;
        std::fs::write(&path, &bytes).unwrap();
        let error = write_card(&path, quality.clone()).unwrap_err().to_string();
        assert!(error.contains("m.dlxa") && error.contains("weights"), "{error}");
        assert!(std::fs::read(&path).unwrap() == bytes, "the damaged file is left as it was, and still refused");
        assert!(Artifact::open(&path).unwrap().verify_weights().is_err());

        write_card(&clean, quality.clone()).unwrap();
        let artifact = Artifact::open(&clean).unwrap();
        artifact.verify_weights().unwrap();
        assert_eq!(dlx_runtime::read_manifest(&artifact).unwrap().quality, Some(quality));
    }

    struct Silent;

    impl crate::driver::Watch for Silent {
        fn progress(&self, _: u64, _: u64) {}
        fn print(&self, _: &str, _: &str) {}
    }

    #[test]
    fn equal_distributions_have_no_divergence() {
        let mut tally = Tally::default();
        tally.add(&[1.0, 2.0, 3.0], &[11.0, 12.0, 13.0]);
        let card = tally.quality(1, 10, 10);
        assert!(card.mean_kl < 1e-12 && card.flip_rate == 0.0 && card.rows == 1);
    }

    #[test]
    fn divergence_is_that_of_the_definition() {
        let mut tally = Tally::default();
        // p = (3/4, 1/4), q = (1/4, 3/4): KL = (1/2) ln 3.
        tally.add(&[3.0f32.ln(), 0.0], &[0.0, 3.0f32.ln()]);
        let card = tally.quality(1, 12, 10);
        assert!((card.mean_kl - 0.5 * 3.0f64.ln()).abs() < 1e-6, "{}", card.mean_kl);
        assert_eq!((card.flip_rate, card.forwards, card.baseline_forwards), (1.0, 12, 10));
    }
}
