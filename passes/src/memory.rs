//! `plan-memory`: every value gets its byte offset in the executor's arena; see [`dlx_ir::plan_memory`].

use crate::{Keeps, PassInfo};
use dlx_ir::{Error, plan_memory};

pub(crate) const PASS: PassInfo = PassInfo {
    name: "plan-memory",
    doc: "values → byte offsets in one arena, reusing what is dead",
    params: &[],
    keeps: |_| Keeps::Bits,
    run: |module, _, _| {
        for graph in &mut module.graphs {
            plan_memory(graph).map_err(|e| Error::new(format!("graph @{}", graph.name), e))?;
        }
        Ok(module.graphs.len())
    },
};
