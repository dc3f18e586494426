//! `dlxc passes`, `ops`, `targets`, `families`: the static tables, as they are.

use dlx_ir::OPS;
use dlx_passes::PASSES;
use dlx_targets::TARGETS;

use super::table::{Align, table};
use super::{Failure, terminal};
use crate::hf::FAMILIES;

/// Which table to print.
#[derive(Clone, Copy, Debug)]
pub enum List {
    /// Model families.
    Families,
    /// ONNX operators that are read.
    OnnxOps,
    /// Operations of the IR.
    Ops,
    /// Passes.
    Passes,
    /// Targets.
    Targets,
}

/// Prints a table.
///
/// # Errors
/// When stdout cannot be written.
pub fn run(list: List) -> Result<(), Failure> {
    let row = |name: &str, detail: String, doc: &str| vec![name.to_owned(), detail, doc.to_owned()];
    let (detail, rows): (_, Vec<_>) = match list {
        List::Families => {
            let rows = FAMILIES.iter().map(|f| row(f.name, f.model_types.join(", "), f.doc));
            ("model_type", rows.collect())
        }
        List::Ops => {
            let rows = OPS.iter().map(|o| row(o.name, format!("{}: {}", o.level, o.attrs.join(", ")), o.doc));
            ("level: attributes", rows.collect())
        }
        List::OnnxOps => {
            let mut rows: Vec<_> =
                crate::onnx::supported().map(|(domain, name)| row(name, domain.to_owned(), "")).collect();
            rows.sort();
            ("domain", rows)
        }
        List::Passes => ("parameters", PASSES.iter().map(|p| row(p.name, p.params.join(", "), p.doc)).collect()),
        List::Targets => {
            let exports = crate::driver::EXPORTS.iter().map(|(name, doc)| row(name, String::new(), doc));
            ("layouts", TARGETS.iter().map(|t| row(t.name, t.lowering.to_owned(), t.doc)).chain(exports).collect())
        }
    };
    terminal::print(&table(&[("name", Align::Left), (detail, Align::Left), ("", Align::Left)], &rows))
}
