//! Random valid modules from a list of choices, and their inputs.
//!
//! Invariant: every list of numbers gives a module that the verifier accepts; a shorter list gives a smaller module, so
//! that proptest can shrink. Patterns that passes look for are more frequent than chance would make them.

use dlx_ir::{
    DType, Dim, Graph, MAX_SPANS, Mask, Module, Op, Operand, Post, SPAN_FIELDS, Tensor, Type, ValueId, WeightDef,
    spans_type,
};

/// Rows of a call; also the size that named rows get.
pub(crate) const ROWS: usize = 3;
/// Features of a head.
const HEAD: usize = 4;
/// Rows of states.
const STATE_ROWS: usize = 8;

struct Generator<'c> {
    choices: std::slice::Iter<'c, u32>,
    module: Module,
    graph: Graph,
    rows: Dim,
    ids: ValueId,
    spans: Operand,
    /// `f32[rows, width]` values, oldest first.
    floats: Vec<(ValueId, usize)>,
    ints: Vec<ValueId>,
}

/// The module that a list of choices stands for: `graph @g` over some states.
pub(crate) fn module(choices: &[u32]) -> Module {
    let mut graph = Graph::new("g");
    let rows = if choices.first().is_some_and(|c| c % 2 == 0) { Dim::from("T") } else { Dim::Fixed(ROWS) };
    let ids = graph.param("ids", Type::new(DType::I32, [rows.clone()]));
    let x = graph.param("x", Type::new(DType::F32, [rows.clone(), Dim::Fixed(2 * HEAD)]));
    let spans = Operand::Value(graph.param("spans", spans_type()));
    let choices = choices.iter();
    let floats = vec![(x, 2 * HEAD)];
    let module = Module::new("random");
    let mut g = Generator { choices, module, graph, rows, ids, spans, floats, ints: Vec::new() };
    while g.choices.len() > 0 {
        g.step();
    }
    let count = 1 + g.pick(3);
    let newest = g.floats.iter().rev().take(count).map(|(v, _)| *v).chain(g.ints.last().copied());
    g.graph.results = newest.collect();
    g.module.graphs.push(g.graph);
    g.module
}

impl Generator<'_> {
    /// A number below `n`; 0 when the choices have run out.
    fn pick(&mut self, n: usize) -> usize {
        self.choices.next().map_or(0, |c| *c as usize % n)
    }

    fn emit(&mut self, op: Op, inputs: Vec<Operand>) -> Vec<ValueId> {
        let names = ["a", "b", "c"];
        let outs = self.graph.emit(&self.module, op, inputs, &names).expect("the generator knows the typing rules");
        for &out in &outs {
            let ty = &self.graph.values[out].ty;
            match ty.dims.as_slice() {
                [rows, Dim::Fixed(width)] if *rows == self.rows && ty.dtype == DType::F32 && width % HEAD == 0 => {
                    self.floats.push((out, *width));
                }
                [_] if ty.dtype == DType::I32 => self.ints.push(out),
                _ => {}
            }
        }
        outs
    }

    /// A value, mostly a recent one.
    fn any(&mut self) -> (Operand, usize) {
        let back = self.pick(4).min(self.floats.len() - 1);
        let (v, width) = self.floats[self.floats.len() - 1 - back];
        (Operand::Value(v), width)
    }

    /// A value of that width.
    fn of(&mut self, width: usize) -> Operand {
        let known: Vec<_> = self.floats.iter().rev().filter(|(_, w)| *w == width).map(|(v, _)| *v).take(3).collect();
        if known.is_empty() {
            let table = self.weight(&[5, width]);
            let ids = Operand::Value(self.ids);
            return Operand::Value(self.emit(Op::Embed {}, vec![ids, table])[0]);
        }
        let i = self.pick(known.len());
        Operand::Value(known[i])
    }

    /// A source weight of that shape: one of two, in one of two types.
    fn weight(&mut self, shape: &[usize]) -> Operand {
        let dtype = [DType::F32, DType::BF16][self.pick(2)];
        let name = format!("w{}.{:?}.{dtype}", self.pick(2), shape);
        let id = self.module.weight(&name);
        let ty = Type::new(dtype, shape.iter().copied());
        Operand::Weight(id.unwrap_or_else(|| self.module.add_weight(&name, ty, WeightDef::Source)))
    }

    fn state(&mut self, name: &str, ty: Type) -> Operand {
        let known = self.module.states.iter().find(|(_, s)| s.name == name).map(|(id, _)| id);
        Operand::State(known.unwrap_or_else(|| self.module.add_state(name, ty)))
    }

    fn eps(&mut self) -> f32 {
        [1e-6, 1e-5][self.pick(2)]
    }

    fn mask(&mut self) -> Mask {
        [Mask::Full, Mask::Causal, Mask::BlockCausal(2)][self.pick(3)]
    }

    fn step(&mut self) {
        match self.pick(22) {
            0 | 1 => {
                let (a, width) = self.any();
                let b = self.of(width);
                let op = if self.pick(3) == 0 { Op::Mul {} } else { Op::Add {} };
                self.emit(op, vec![a, b]);
            }
            2 => {
                let x = self.any().0;
                self.emit(Op::Silu {}, vec![x]);
            }
            3 | 4 => {
                let x = self.any().0;
                // Powers of two, so that joined factors are exact.
                let by = [1.0, 0.5, 2.0, -1.0][self.pick(4)];
                self.emit(Op::Scale { by }, vec![x]);
            }
            5 => {
                let x = self.any().0;
                self.emit(Op::Softmax {}, vec![x]);
            }
            6 => {
                let (x, width) = self.any();
                let len = [HEAD, width][self.pick(2)];
                let (w, eps) = (self.weight(&[len]), self.eps());
                self.emit(Op::RmsNorm { eps }, vec![x, w]);
            }
            7..=9 => self.linear(),
            10 => self.gated(),
            11 => self.rope(),
            12 | 13 => self.attention(),
            14 => {
                let x = self.any().0;
                let to = [DType::F16, DType::F32, DType::BF16][self.pick(3)];
                let y = self.emit(Op::Cast { to, wrap: false }, vec![x])[0];
                self.emit(Op::Cast { to: DType::F32, wrap: false }, vec![Operand::Value(y)]);
            }
            15 => self.matmul(),
            16 => {
                let (x, width) = self.any();
                let dtype = [DType::F32, DType::F16][self.pick(2)];
                let ty = Type::new(dtype, [STATE_ROWS, width]);
                let state = self.state(&format!("rows.{width}.{dtype}"), ty);
                if self.pick(3) > 0 {
                    self.emit(Op::StoreRows {}, vec![x, state]);
                }
                let rows = Operand::Value(self.ids);
                self.emit(Op::TakeRows {}, vec![state, rows]);
            }
            17 => self.cached_attention(),
            18 => {
                let (x, width) = self.any();
                let head = self.weight(&[6, width]);
                let ban = [None, Some(2)][self.pick(2)];
                self.emit(Op::HeadStats { norm: None, ban }, vec![x, head]);
            }
            19 | 20 => self.siblings(),
            _ => self.again(),
        }
    }

    /// What `fuse-linears` looks for: linears of one input, with or without biases, and others between them.
    fn siblings(&mut self) {
        let (x, width) = self.any();
        let plain = |bias| Op::Linear { n: 1, bias, norm: None, post: Post::None };
        for _ in 0..2 + self.pick(3) {
            let out = [HEAD, 2 * HEAD][self.pick(2)];
            let mut inputs = vec![x, self.weight(&[out, width])];
            let bias = self.pick(4) == 0;
            if bias {
                inputs.push(self.weight(&[out]));
            }
            self.emit(plain(bias), inputs);
        }
    }

    fn linear(&mut self) {
        let (mut x, width) = self.any();
        if self.pick(3) == 0 {
            let (w, eps) = (self.weight(&[width]), self.eps());
            x = Operand::Value(self.emit(Op::RmsNorm { eps }, vec![x, w])[0]);
        }
        let n = [1, 1, 1, 2, 3][self.pick(5)];
        let out = [HEAD, 2 * HEAD][self.pick(2)];
        let (bias, norm) = (self.pick(4) == 0, self.pick(4) == 0);
        let post = match (n, self.pick(4)) {
            (1, 0) => Post::Add,
            (2, 0) => Post::SwiGlu,
            _ => Post::None,
        };
        let mut inputs = vec![x];
        inputs.extend((0..n).map(|_| self.weight(&[out, width])));
        if bias {
            inputs.extend((0..n).map(|_| self.weight(&[out])));
        }
        let norm = norm.then(|| {
            inputs.push(self.weight(&[width]));
            self.eps()
        });
        if post == Post::Add {
            inputs.push(self.of(out));
        }
        let residual = self.of(out);
        let outs = self.emit(Op::Linear { n: n as u32, bias, norm, post }, inputs);
        if self.pick(3) == 0 {
            self.emit(Op::Add {}, vec![residual, Operand::Value(outs[0])]);
        }
    }

    /// What `fuse-swiglu` looks for, or nearly.
    fn gated(&mut self) {
        let (x, width) = self.any();
        let mut inputs = vec![x];
        inputs.extend((0..2).map(|_| self.weight(&[HEAD, width])));
        let outs = self.emit(Op::Linear { n: 2, bias: false, norm: None, post: Post::None }, inputs);
        let gate = self.emit(Op::Silu {}, vec![Operand::Value(outs[0])])[0];
        let up = outs[usize::from(self.pick(4) > 0)];
        let sides = if self.pick(2) == 0 { [gate, up] } else { [up, gate] };
        self.emit(Op::Mul {}, sides.map(Operand::Value).to_vec());
    }

    fn rope(&mut self) {
        let mut x = self.any().0;
        let head_dim = HEAD as u32;
        let ids = Operand::Value(self.ids);
        let table = self.emit(Op::RopeTable { theta: 100.0, head_dim }, vec![ids])[0];
        let norm = self.pick(3);
        let w = self.weight(&[HEAD]);
        if norm == 1 {
            x = Operand::Value(self.emit(Op::RmsNorm { eps: 1e-6 }, vec![x, w])[0]);
        }
        let mut inputs = vec![x, Operand::Value(table)];
        inputs.extend((norm == 2).then_some(w));
        self.emit(Op::Rope { head_dim, norm: (norm == 2).then_some(1e-6) }, inputs);
    }

    fn attention(&mut self) {
        let (q, k, v) = (self.any().0, self.of(HEAD), self.of(HEAD));
        let (rule, ids) = (self.mask(), Operand::Value(self.ids));
        let head_dim = HEAD as u32;
        if self.pick(2) == 0 {
            self.emit(Op::Attention { head_dim, mask: Some(rule) }, vec![q, k, v]);
        } else {
            let mask = Operand::Value(self.emit(Op::Mask { rule }, vec![ids])[0]);
            self.emit(Op::Attention { head_dim, mask: None }, vec![q, k, v, mask]);
        }
    }

    /// A product with something transposed: a weight node, a weight expression, or an activation twice.
    fn matmul(&mut self) {
        let (x, width) = self.any();
        let w = self.weight(&[HEAD, width]);
        let by = match self.pick(3) {
            0 => Operand::Value(self.emit(Op::Transpose { perm: vec![1, 0] }, vec![w])[0]),
            1 => {
                let half = self.emit(Op::Scale { by: 0.5 }, vec![w])[0];
                Operand::Value(self.emit(Op::Transpose { perm: vec![1, 0] }, vec![Operand::Value(half)])[0])
            }
            _ => {
                let turned = self.emit(Op::Transpose { perm: vec![1, 0] }, vec![x])[0];
                self.emit(Op::Transpose { perm: vec![1, 0] }, vec![Operand::Value(turned)]);
                let both = self.weight(&[HEAD, width]);
                let Operand::Weight(id) = both else { return };
                let ty = Type::new(self.module.weights[id].ty.dtype, [width, HEAD]);
                Operand::Weight(self.module.add_weight(
                    "turned",
                    ty,
                    WeightDef::Expr(Op::Transpose { perm: vec![1, 0] }, vec![id]),
                ))
            }
        };
        self.emit(Op::Matmul {}, vec![x, by]);
    }

    fn cached_attention(&mut self) {
        let (q, k, v) = (self.any().0, self.of(HEAD), self.of(HEAD));
        let dtype = [DType::F32, DType::F16][self.pick(2)];
        let ty = Type::new(dtype, [STATE_ROWS, 1, HEAD]);
        let states = ["k", "v"].map(|s| self.state(&format!("kv.{dtype}.{s}"), ty.clone()));
        let spans = self.spans;
        if self.pick(4) > 0 {
            self.emit(Op::KvWrite {}, vec![k, v, states[0], states[1], spans]);
        }
        let mask = self.mask();
        let op = Op::CachedAttention { head_dim: HEAD as u32, mask };
        self.emit(op, vec![q, states[0], states[1], spans]);
    }

    /// A node that is there already, for `cse`.
    fn again(&mut self) {
        let pure: Vec<_> = self.graph.nodes.iter().filter(|n| !n.op.touches_state()).cloned().collect();
        if let Some(node) = pure.len().checked_sub(1).map(|last| &pure[last - self.pick(pure.len().min(6))]) {
            self.emit(node.op.clone(), node.inputs.clone());
        }
    }
}

/// Contents of a weight: multiples of 1/8 in −1…1, which every float type holds exactly.
pub(crate) fn weight(name: &str, len: usize) -> Vec<f32> {
    let seed = name.bytes().fold(7usize, |h, b| h.wrapping_mul(31).wrapping_add(b.into()) % 10007);
    (0..len).map(|i| ((i * 37 + seed) % 17) as f32 / 8.0 - 1.0).collect()
}

/// Arguments of call `call` of two.
pub(crate) fn arguments(call: usize) -> Vec<Tensor> {
    let ids = (0..ROWS).map(|i| ((i * 2 + call) % 5) as i32).collect();
    let x = weight(&format!("x{call}"), ROWS * 2 * HEAD);
    let at = call * ROWS;
    let mut spans = vec![ROWS as i32, 0, at as i32, call as i32, (at + ROWS) as i32];
    spans.resize(MAX_SPANS * SPAN_FIELDS, 0);
    vec![Tensor::i32(&[ROWS], ids), Tensor::f32(&[ROWS, 2 * HEAD], x), Tensor::i32(&[MAX_SPANS, SPAN_FIELDS], spans)]
}
