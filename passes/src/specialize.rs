//! `specialize`: graphs with a named dimension become one graph per bucket: `@step` with `T` → `@step_4`, `@step_64`.
//!
//! Parameters: for each name, its sizes joined by `:`, such as `T=4:64`.

use crate::pipeline::{Keeps, Params, PassInfo, parse};
use dlx_ir::{Dim, Error, Graph, Module};
use std::collections::BTreeSet;

pub(crate) const PASS: PassInfo = PassInfo {
    name: "specialize",
    doc: "graphs with a named dimension → one graph per size {NAME=SIZE:SIZE…}",
    params: &["*"],
    keeps: |_| Keeps::Bits,
    run,
};

fn run(module: &mut Module, params: &Params, _: &mut Vec<crate::Note>) -> Result<usize, Error> {
    for (i, (name, _)) in params.0.iter().enumerate() {
        if params.0[..i].iter().any(|(earlier, _)| earlier == name) {
            return Err(Error::new(format!("parameter `{name}`"), "is given twice; join its sizes by `:`"));
        }
        let dims = module.graphs.iter().flat_map(|g| g.values.iter()).flat_map(|(_, v)| &v.ty.dims);
        if !dims.into_iter().any(|d| *d == Dim::from(name.as_str())) {
            return Err(Error::new(format!("parameter `{name}`"), "is a dimension of no graph"));
        }
    }
    let mut changes = 0;
    for graph in std::mem::take(&mut module.graphs) {
        let dims = graph.values.iter().flat_map(|(_, v)| &v.ty.dims);
        let names: BTreeSet<&str> =
            dims.filter_map(|d| if let Dim::Named(n) = d { Some(&**n) } else { None }).collect();
        let mut buckets = vec![graph.clone()];
        for name in names {
            let sizes = params.get(name).ok_or_else(|| {
                Error::new(format!("graph @{}", graph.name), format!("no sizes are given for `{name}`"))
            })?;
            let sizes = sizes.split(':').map(|s| parse::<usize>(name, s)).collect::<Result<BTreeSet<_>, _>>()?;
            buckets = buckets.iter().flat_map(|g| sizes.iter().map(|&n| with_size(g, name, n))).collect();
            changes += 1;
        }
        module.graphs.extend(buckets);
    }
    Ok(changes)
}

fn with_size(graph: &Graph, name: &str, size: usize) -> Graph {
    let mut graph = graph.clone();
    graph.name = format!("{}_{size}", graph.name);
    for (_, value) in graph.values.iter_mut() {
        for dim in value.ty.dims.iter_mut().filter(|d| **d == Dim::from(name)) {
            *dim = Dim::Fixed(size);
        }
    }
    graph
}
