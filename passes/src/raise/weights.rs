//! Where rows need other rows of a weight than the graph reads: parts of a product, and heads in another order of features.

use super::rows::{Meaning, Rows};
use super::view::{Axis, is_plain};
use dlx_ir::{DType, Data, Id, Node, Op, Operand, Type, ValueId, WeightDef};

impl Rows<'_> {
    /// Some features of a product with a weight are the product with some rows of it.
    pub(super) fn slice(
        &mut self,
        operand: Operand,
        dims: &[usize],
        starts: &[i64],
        ends: &[i64],
        steps: &[i64],
    ) -> Result<Meaning, String> {
        let refused = || "leaves out tokens or features".to_owned();
        let (value, mut axes) = self.rows(operand)?;
        let shape = self.shape(operand);
        let (features, last) = (self.features(value), shape.len().saturating_sub(1));
        let whole = shape.iter().zip(dims).take(last).all(|(a, b)| a == b);
        let node = self.graph.nodes.iter().rev().find(|n| n.outputs.contains(&value));
        let (Some(node), true, [.., 1]) = (node, whole && is_plain(&axes, features), steps) else {
            return Err(refused());
        };
        let Op::Linear { n: 1, .. } = node.op else { return Err(refused()) };
        let (op, mut inputs, origin) = (node.op.clone(), node.inputs.clone(), node.origin.clone());
        let (Some(start), Some(end)) = (starts.last().copied(), ends.last().copied()) else { return Err(refused()) };
        for weight in inputs.iter_mut().skip(1) {
            let columns = self.shape(*weight).split_first().map(|(_, rest)| rest.to_vec()).unwrap_or_default();
            let of = |first: i64, rest: &dyn Fn(&usize) -> i64| {
                std::iter::once(first).chain(columns.iter().map(rest)).collect()
            };
            let op = Op::Slice { starts: of(start, &|_| 0), ends: of(end, &|n| *n as i64), steps: of(1, &|_| 1) };
            *weight = self.rows_of(*weight, op, Vec::new(), (end - start) as usize)?;
        }
        self.origin.join(&origin);
        let value = self.emit(op, inputs)?;
        let n = self.features(value);
        if let Some(last) = axes.last_mut() {
            *last = if n == 1 { Axis::One } else { Axis::Features(n, 1) };
        }
        Ok(Meaning::Rows { value, axes })
    }

    /// Puts the even features of each head in front of the odd ones, in everything that `value` is made of from a product
    /// on: then halves are rotated where neighbors were. Scores do not change if queries and keys are both put so.
    pub(super) fn part_neighbors(&mut self, operand: Operand, value: ValueId, width: usize) -> Result<(), String> {
        let place = |i: usize| if i < width / 2 { 2 * i } else { 2 * (i - width / 2) + 1 };
        let features = self.features(value);
        // Views in between read their operand once, too.
        let mut old = operand.value();
        while let Some(v) = old {
            let once = self.uses.get(v.index()) == Some(&1);
            let node = self.old.nodes.iter().find(|n| n.outputs.contains(&v));
            if !once {
                return Err("rotates neighbors of something that others read, too".into());
            }
            // A part of a product has become a product of its own.
            let ends = |n: &Node| match n.op {
                Op::Linear { .. } => true,
                Op::Slice { .. } => self.shape(n.inputs[0]) != self.shape(Operand::Value(v)),
                _ => false,
            };
            old = node.filter(|n| !ends(n)).and_then(|n| n.inputs.iter().find_map(|i| i.value()));
        }
        let mut at = value;
        loop {
            let Some(i) = self.graph.nodes.iter().rposition(|n| n.outputs.contains(&at)) else {
                return Err("rotates neighbors of something that is no product with a weight".into());
            };
            let (op, inputs) = (self.graph.nodes[i].op.clone(), self.graph.nodes[i].inputs.clone());
            let skip = match op {
                Op::RmsNorm { .. } if self.shape(inputs[1]) == [width] => 1,
                Op::Linear { n: 1, .. } => 1,
                Op::Scale { .. } => inputs.len(),
                _ => return Err("rotates neighbors of something that is no product with a weight".into()),
            };
            for (k, weight) in inputs.iter().enumerate().skip(skip) {
                let rows = if matches!(op, Op::Linear { .. }) { features } else { width };
                let order: Vec<i64> = (0..rows).map(|r| (r / width * width + place(r % width)) as i64).collect();
                let ty = Type::new(DType::I64, [rows]);
                let same = |w: &dlx_ir::Weight| {
                    matches!(&w.def, WeightDef::Literal(Data::I64(o)) if *o == order) && w.ty == ty
                };
                let known = self.module.weights.iter().find(|(_, w)| same(w)).map(|(id, _)| id);
                let order = match known {
                    Some(id) => id,
                    None => self.module.add_weight("halves", ty.clone(), WeightDef::Literal(Data::I64(order.clone()))),
                };
                let with = self.rows_of(*weight, Op::Gather { axis: 0 }, vec![order], rows)?;
                self.graph.nodes[i].inputs[k] = with;
            }
            match (op, inputs[0]) {
                (Op::Linear { .. }, _) => return Ok(()),
                (_, Operand::Value(v)) => at = v,
                _ => return Err("rotates neighbors of a constant".into()),
            }
        }
    }

    /// The weight that an op makes of another one, which has so many rows then; the same one twice is one weight.
    fn rows_of(
        &mut self,
        weight: Operand,
        op: Op,
        others: Vec<dlx_ir::WeightId>,
        rows: usize,
    ) -> Result<Operand, String> {
        let id = weight.weight().ok_or("has a weight that is computed")?;
        let from = &self.module.weights[id];
        if !from.ty.dtype.is_float() {
            return Err(format!("needs other rows of @{}, which is stored as {}", from.name, from.ty.dtype));
        }
        let mut ty = from.ty.clone();
        if let Some(first) = ty.dims.first_mut() {
            *first = rows.into();
        }
        let inputs: Vec<_> = std::iter::once(id).chain(others).collect();
        let def = WeightDef::Expr(op, inputs);
        let known = self.module.weights.iter().find(|(_, w)| w.def == def).map(|(id, _)| id);
        let name = from.name.clone();
        Ok(Operand::Weight(known.unwrap_or_else(|| self.module.add_weight(&name, ty, def))))
    }
}
