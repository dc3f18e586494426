//! What a compile would make of an ONNX file, found by importing and raising it.

use std::collections::BTreeMap;

use dlx_ir::{Mask, VerifiedModule};
use dlx_passes::Report;
use serde::Serialize;

use super::bind::shapes;
use super::file::OnnxModel;
use super::generator::{generator, plain};

/// What a compile would make of an ONNX file.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Outlook {
    /// `generator` or `graph`; nothing where neither can be made.
    pub becomes: Option<&'static str>,
    /// The rule that all attention of a generator follows.
    pub mask: Option<String>,
    /// How often each op occurs after raising.
    pub ops: BTreeMap<&'static str, usize>,
    /// What the raise passes left alone, and why.
    pub left: Vec<String>,
    /// Why it is no generator.
    pub no_generator: Option<String>,
    /// Why it is no graph either.
    pub no_graph: Option<String>,
    /// What a compile would note.
    pub notes: Vec<String>,
}

impl Outlook {
    /// Tries a file as a generator under the mask `rule`, and else as a graph with these sizes of its dynamic dimensions.
    pub fn of(model: &OnnxModel, rule: Mask, positions: usize, sizes: &BTreeMap<String, usize>) -> Outlook {
        let no_generator = match generator(model, rule, positions) {
            Ok(g) => {
                let made = Outlook { mask: Some(g.mask.to_string()), notes: g.notes, ..Outlook::default() };
                return made.with("generator", &g.module, &g.reports);
            }
            Err(e) => Some(e.to_string()),
        };
        match shapes(model, sizes).and_then(|shapes| plain(model, "graph", shapes)) {
            Ok(g) => {
                Outlook { no_generator, notes: g.notes, ..Outlook::default() }.with("graph", &g.module, &g.reports)
            }
            Err(e) => Outlook { no_generator, no_graph: Some(e.to_string()), ..Outlook::default() },
        }
    }

    fn with(mut self, becomes: &'static str, module: &VerifiedModule, reports: &[Report]) -> Outlook {
        self.becomes = Some(becomes);
        for node in module.graphs.iter().flat_map(|g| &g.nodes) {
            *self.ops.entry(node.op.name()).or_insert(0) += 1;
        }
        let left = |r: &Report| r.notes.iter().map(|note| format!("{}: {note}", r.name)).collect::<Vec<_>>();
        self.left = reports.iter().flat_map(left).collect();
        self
    }
}
