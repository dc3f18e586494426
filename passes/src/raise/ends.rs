//! What a graph makes of its logits at the end, which rows of all tokens do without: the last token alone, a softmax.
//!
//! Only what is done for each token by itself may follow where the last one is picked.

use super::look::Look;
use super::rows::{Meaning, Rows};
use super::view::{Axis, reshape};
use dlx_ir::{Id, Node, Op, Operand, Unary, ValueId};
use std::collections::BTreeSet;

impl Rows<'_> {
    /// Rows of a table, or one of the tokens.
    pub(super) fn gather(&mut self, node: &Node, axis: i64, dims: &[usize]) -> Result<Meaning, String> {
        let (x, index) = (node.inputs[0], node.inputs[1]);
        let (Operand::Value(_), Some(at)) = (x, usize::try_from(axis).ok()) else {
            return if axis == 0 { self.embed(x, index) } else { Err("is a view of a weight".into()) };
        };
        let shape = self.shape(x);
        let size = shape.get(at).copied().unwrap_or(0);
        let chosen =
            Look::new(self.module, self.old, &[]).scalar(index).map(|i| if i < 0.0 { i + size as f64 } else { i });
        if size == 1 && chosen == Some(0.0) && dims.iter().product::<usize>() == shape.iter().product() {
            return self.view(x, &|axes| reshape(axes, dims));
        }
        let alone = dims.len() + 1 == shape.len() && size == self.tokens;
        if alone && chosen == Some(size as f64 - 1.0) && self.is_tail(node) {
            return self.last(x, at, true);
        }
        Err("picks some of the tokens or features".into())
    }

    /// The dimension of which a slice leaves the last of the tokens, and all of the others.
    pub(super) fn leaves_last(&self, x: Operand, dims: &[usize], starts: &[i64]) -> Option<usize> {
        let shape = self.shape(x);
        let mut cut = (0..shape.len()).filter(|n| dims.get(*n) != shape.get(*n));
        let (at, None) = (cut.next()?, cut.next()) else { return None };
        let last = i64::try_from(self.tokens - 1).ok();
        (shape[at] == self.tokens && dims.get(at) == Some(&1) && starts.get(at).copied() == last).then_some(at)
    }

    /// The rows of all tokens in the place of those of the last one, whose axis may be `gone`.
    pub(super) fn last(&mut self, x: Operand, at: usize, gone: bool) -> Result<Meaning, String> {
        let (value, mut axes) = self.rows(x)?;
        if !matches!(axes.get(at), Some(Axis::Rows(_))) {
            return Err("picks some of the features".into());
        }
        if gone {
            let spare = axes.iter().position(|a| *a == Axis::One);
            axes.remove(spare.ok_or("picks one token of those without a batch")?);
        }
        self.ends.push("the file gives logits of the last token alone: they are computed for every token");
        Ok(Meaning::Rows { value, axes })
    }

    /// Whether what follows a node is for each token by itself.
    pub(super) fn is_tail(&self, node: &Node) -> bool {
        let mut of: BTreeSet<ValueId> = node.outputs.iter().copied().collect();
        let mixes = |n: &Node| matches!(n.op, Op::Sdpa { .. } | Op::Rotary { .. });
        for node in &self.old.nodes {
            let values: Vec<ValueId> = node.inputs.iter().filter_map(|o| o.value()).collect();
            if values.iter().any(|v| of.contains(v)) {
                if values.len() != 1 || mixes(node) {
                    return false;
                }
                of.extend(&node.outputs);
            }
        }
        true
    }

    /// Whether a node is the softmax of logits that the graph ends with, or the logarithm of it.
    pub(super) fn is_end(&mut self, node: &Node) -> bool {
        let result = self.old.results[0];
        let of = |v: ValueId| self.old.nodes.iter().find(|n| n.outputs == [v]);
        let log = of(result).filter(|n| matches!(n.op, Op::Unary { kind: Unary::Log }));
        let inner = log.and_then(|n| n.inputs[0].value()).filter(|v| self.uses.get(v.index()) == Some(&1));
        let softmax = inner.or(Some(result)).and_then(of).filter(|n| matches!(n.op, Op::Softmax {}));
        let Some(softmax) = softmax else { return false };
        if node.outputs == softmax.outputs {
            self.ends.push("the softmax at the end is left out: logits are what it is of");
        }
        node.outputs == softmax.outputs || inner.is_some() && node.outputs == [result]
    }
}
