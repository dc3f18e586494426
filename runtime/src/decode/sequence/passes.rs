//! Which rows a pass feeds and looks at: from positions of the sequence to spans.

use std::ops::Range;

use super::super::pass::{Fed, ForwardKind, Pass, Reads, Window};
use super::super::plan::Block;
use super::super::policy::CacheMode;
use super::Sequence;

impl Sequence {
    /// The rows that the next pass over a sub-block feeds.
    pub(super) fn window(&self, block: &Block, part: &Range<usize>, filled: bool) -> Window {
        let policy = &self.policy.policy;
        let (fed, end) = (block.fed_from..block.cells.end, self.plan.end);
        let (kind, cells, past_len, visible) = match policy.cache {
            CacheMode::None => return Window::full(end),
            CacheMode::Prefix => (ForwardKind::Suffix, fed.start..end, fed.start, end),
            CacheMode::Dual => (ForwardKind::DualBlock, fed, end, end),
            CacheMode::CommitBlock | CacheMode::CommitBetween => match policy.sub_block {
                Some(sub) if sub.cached && filled && self.ids[part.start] != policy.mask_id => {
                    (ForwardKind::SubBlock, part.clone(), fed.start, fed.end)
                }
                Some(sub) if sub.cached => (ForwardKind::BlockRefresh, fed.clone(), fed.start, fed.end),
                _ => (ForwardKind::Block, fed.clone(), fed.start, fed.end),
            },
        };
        Window { kind, cells, past_len, visible }
    }

    /// A pass over `window` that decides `positions`.
    pub(super) fn looks_at(&self, window: Window, positions: Vec<usize>) -> Pass {
        // The first position has no row before it in this pass. At the beginning of the sequence there is none at all.
        let borrows_first = Self::borrows_first(&self.before, &window, &positions);
        let rows = positions[usize::from(borrows_first)..]
            .iter()
            .map(|position| (position - window.cells.start).saturating_sub(self.policy.policy.logit_shift))
            .collect();
        self.pass(window, rows, positions)
    }

    pub(super) fn borrows_first(before: &[f32], window: &Window, positions: &[usize]) -> bool {
        positions.first() == Some(&window.cells.start) && !before.is_empty()
    }

    /// A pass over `window`, as spans. Positions become cache rows here and nowhere else: hidden tokens have none.
    pub(super) fn pass(&self, window: Window, rows: Vec<usize>, positions: Vec<usize>) -> Pass {
        let stores = matches!(window.kind, ForwardKind::Prefill | ForwardKind::Commit);
        let cells = if stores { self.fed(&window.cells) } else { window.cells.clone().collect() };
        let at = window.cells.start - self.hidden;
        // A pass that stores sees what it feeds; others see further positions, none of which is hidden.
        let visible = if stores { at + cells.len() } else { window.visible - self.hidden };
        let mask = self.policy.policy.mask_id;
        let id = |lane: usize, position: usize| {
            if lane > 0 && position < self.prompt.len() { mask } else { self.ids[position] }
        };
        let lanes = self.slots.iter().enumerate();
        let fed = lanes.map(|(lane, &slot)| Fed {
            slot,
            ids: cells.iter().map(|&cell| id(lane, cell)).collect(),
            pos: (0..).skip(at).take(cells.len()).collect(),
            at,
            visible,
        });
        let reads = if self.policy.needs_logits { Reads::Logits } else { Reads::Stats };
        Pass { window, fed: fed.collect(), rows, reads, positions }
    }

    /// The positions that a pass which fills the caches feeds.
    pub(super) fn fed(&self, cells: &Range<usize>) -> Vec<usize> {
        cells.clone().filter(|&position| Some(self.ids[position]) != self.policy.policy.hidden_id).collect()
    }
}
