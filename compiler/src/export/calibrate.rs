//! Ranges of what goes into products with weights and comes out of them, seen on tokens at several mask ratios.
//!
//! A denoising model meets masked input on every pass: ranges from clean text alone are too narrow. What bounds a range is the
//! smallest and largest value, since outliers carry the model's answers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use dlx_ir::{Data, Error, Graph, Module, Op, Tensor};
use dlx_targets::WeightSource;
use serde::Serialize;

use super::run::run;

/// Smallest and largest value.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Range {
    /// The smallest.
    pub low: f32,
    /// The largest.
    pub high: f32,
}

impl Range {
    /// No value yet; zero is always inside.
    pub const EMPTY: Range = Range { low: 0.0, high: 0.0 };

    fn join(&mut self, values: &[f32]) {
        for v in values {
            (self.low, self.high) = (self.low.min(*v), self.high.max(*v));
        }
    }

    /// Scale and zero point of 16-bit codes.
    pub fn code(self) -> (f32, u16) {
        let scale = ((self.high - self.low) / 65535.0).max(f32::MIN_POSITIVE);
        let zero = (-self.low / scale).round_ties_even().clamp(0.0, 65535.0);
        (scale, zero as u16)
    }
}

/// Of a product.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Product {
    /// What goes in.
    pub input: Range,
    /// What comes out, before a bias.
    pub output: Range,
}

/// By the name of a product's weight.
pub type Ranges = BTreeMap<String, Product>;

/// Ranges of the products of some graphs that run one after the other: the first result of one is the argument of the next.
///
/// # Errors
/// As [`run`], a value that is not finite, or cancellation.
pub fn calibrate(
    module: &Module,
    graphs: [&Graph; 2],
    source: &dyn WeightSource,
    samples: Vec<Vec<Tensor>>,
    cancel: &AtomicBool,
) -> Result<Ranges, Error> {
    let mut ranges = Ranges::new();
    let mut arguments = samples;
    for graph in graphs {
        let mut observe = |node: &dlx_ir::Node, args: &[&Tensor], outs: &[Tensor]| {
            if cancel.load(Ordering::Relaxed) {
                return Err(Error::new("compile", "was interrupted"));
            }
            let weight = node.inputs.get(1).and_then(|o| o.weight());
            let (Op::Linear { .. }, Some(w)) = (&node.op, weight) else { return Ok(()) };
            let none = Product { input: Range::EMPTY, output: Range::EMPTY };
            let product = ranges.entry(module.weights[w].name.clone()).or_insert(none);
            for (range, t) in [(&mut product.input, args[0]), (&mut product.output, &outs[0])] {
                let Data::F32(values) = &t.data else { continue };
                if let Some(v) = values.iter().find(|v| !v.is_finite()) {
                    return Err(Error::new(module.node_text(graph, node), format!("meets {v} while calibrating")));
                }
                range.join(values);
            }
            Ok(())
        };
        let results = run(module, graph, source, arguments, &mut observe)?;
        arguments = results.into_iter().map(|r| r.into_iter().take(1).collect()).collect();
    }
    Ok(ranges)
}
