//! `quantize`: the matrices of linears, heads and embeddings become quantized (or converted) weight expressions.
//!
//! ```text
//! %y = linear %x, @w: f32[4, 192]
//! ```
//! becomes `%y = linear %x, @w.q4g64: f32[4, 192]` with
//! `weight @w.q4g64: q4g64[192, 192] = quantize @w {to=q4g64}`.
//!
//! Parameters: `to` (a quantized format or float type; absent = as stored), and any number of `part-of-a-name=format`
//! overrides (`none` = as stored), of which the last that matches counts; `head` and `embed` name the LM head and the
//! embedding.
//!
//! Weights that come quantized stay as they are unless an override matches them, or `again=true` says that `to` is for them
//! too. A source of another format is then read as the numbers that its codes stand for, and an expression that was to round
//! one makes way for its operand.

use crate::pipeline::{Keeps, Params, PassInfo, parse};
use dlx_ir::{DType, Error, Module, Op, QuantFormat, Type, WeightDef, WeightId};
use std::collections::BTreeMap;

pub(crate) const PASS: PassInfo = PassInfo {
    name: "quantize",
    doc: "matrices → quantized weights {to=q4g32|…|f16, again=true, NAME-PART|head|embed=FORMAT|none…}",
    params: &["*"],
    keeps,
    run,
};

/// As much as the coarsest of the formats loses in one node, of which SwiGLU multiplies two products.
fn keeps(params: &Params) -> Keeps {
    let formats = params.0.iter().filter_map(|(_, format)| format.parse().ok());
    let loss = formats.map(|format: DType| match format {
        DType::Quant(QuantFormat { bits: 4, .. }) => 0.25,
        DType::F16 | DType::BF16 => 0.01,
        _ => 0.03,
    });
    Keeps::Format(loss.fold(0.0, f32::max))
}

fn run(module: &mut Module, params: &Params, _: &mut Vec<crate::Note>) -> Result<usize, Error> {
    let to: Option<DType> = params.optional("to")?;
    let mut roles: BTreeMap<WeightId, Vec<&str>> = BTreeMap::new();
    for node in module.graphs.iter().flat_map(|g| &g.nodes) {
        let (role, range) = match &node.op {
            Op::Linear { n, .. } => ("linear", 1..1 + *n as usize),
            Op::HeadStats { .. } => ("head", 1..2),
            Op::Embed {} => ("embed", 1..2),
            _ => continue,
        };
        for w in node.inputs[range].iter().filter_map(|i| i.weight()) {
            roles.entry(w).or_default().push(role);
        }
    }
    let again = params.optional("again")?.unwrap_or(false);
    let overrides = params.0.iter().filter(|(k, _)| k != "to" && k != "again");
    let format = |k: &str, v: &str| if v == "none" { Ok(None) } else { parse::<DType>(k, v).map(Some) };
    let overrides = overrides.map(|(k, v)| Ok((k.as_str(), format(k, v)?)));
    let overrides = overrides.collect::<Result<Vec<_>, Error>>()?;
    let mut used = vec![false; overrides.len()];
    let mut map: Vec<WeightId> = module.weights.iter().map(|(id, _)| id).collect();
    let mut changes = 0;
    for (&read, roles) in &roles {
        let w = &module.weights[read];
        let (mut format, mut asked) = (to, again);
        for (i, (pattern, f)) in overrides.iter().enumerate() {
            if w.name.contains(pattern) || roles.contains(pattern) {
                used[i] = true;
                (format, asked) = (*f, true);
            }
        }
        let comes_quantized = !w.ty.dtype.is_float();
        if comes_quantized && (!asked || format == Some(w.ty.dtype)) {
            continue;
        }
        let id = match (&w.def, format) {
            (WeightDef::Expr(Op::Quantize { .. }, from), _) => {
                let from = from[0];
                map[dlx_ir::Id::index(read)] = from;
                changes += 1;
                from
            }
            (WeightDef::Source, Some(_)) if comes_quantized => {
                module.weights[read].ty.dtype = DType::F32;
                changes += 1;
                read
            }
            _ if comes_quantized => continue,
            _ => read,
        };
        let w = &module.weights[id];
        let Some(format) = format.filter(|f| *f != w.ty.dtype) else { continue };
        let op = match format {
            DType::Quant(_) => Op::Quantize { to: format },
            _ => Op::Cast { to: format, wrap: false },
        };
        let (name, ty) = (format!("{}.{format}", w.name), Type { dtype: format, ..w.ty.clone() });
        map[dlx_ir::Id::index(read)] = module.add_weight(&name, ty, WeightDef::Expr(op, vec![id]));
        changes += 1;
    }
    if let Some(i) = used.iter().position(|u| !u) {
        let name = overrides[i].0;
        return Err(Error::new(format!("override `{name}`"), "matches no matrix of the model")
            .help("use part of a tensor's name, or `head`, `embed`; `dlxc inspect MODEL` lists the tensors"));
    }
    crate::replace_weights(module, &map);
    Ok(changes)
}
