//! A small decoder as exporters spell it, in rank-N ops with static shapes.

use dlx_ir::{
    Binary, DType, Data, Graph, Mask, Module, Norm, Op, Operand, Post, Reduce, Type, Unary, VerifiedModule, WeightDef,
};

pub(crate) const TOKENS: usize = 6;
pub(crate) const HIDDEN: usize = 16;
pub(crate) const HEADS: usize = 4;
pub(crate) const KV_HEADS: usize = 2;
pub(crate) const WIDTH: usize = 8;
pub(crate) const INNER: usize = 24;
pub(crate) const VOCAB: usize = 32;

#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Norms {
    /// x · (1 / sqrt(mean(pow(x, 2)) + eps)), by `reciprocal`; the weight first.
    Reciprocal,
    /// The same by a quotient, of x · x.
    Quotient,
    /// x / sqrt(…), the weight last.
    Divided,
    /// x · pow(…, −0.5).
    Power,
    Given,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Ropes {
    /// x · cos + concat(−hi, lo) · sin by slices.
    Slices,
    /// The halves by a reshape to `[…, 2, d/2]` and slices of it.
    Reshaped,
    /// Slices on `[1, T, h, d]`, before the transposition.
    BeforeHeads,
    /// Halves rotated apart and joined.
    Halves,
    /// Neighbors rotated and stacked again.
    Neighbors,
    Given,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Attentions {
    /// √s on both sides, keys transposed in three dimensions, a guard for rows that see nothing.
    Sdpa,
    /// s on the scores, keys transposed by perm, no guard.
    Eager,
    /// Scores divided, and masked by a selection.
    Select,
    /// `sdpa` with repeated keys and a bool mask.
    Given,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Spelling {
    pub(crate) norms: Norms,
    pub(crate) ropes: Ropes,
    pub(crate) attentions: Attentions,
    pub(crate) mask: Mask,
    /// How masks say never.
    pub(crate) never: f32,
    pub(crate) dtype: DType,
    pub(crate) bias: bool,
    pub(crate) qk_norm: bool,
    pub(crate) tied: bool,
    pub(crate) theta: f32,
    pub(crate) layers: usize,
    /// Whether queries, keys and values are parts of one product.
    pub(crate) fused: bool,
}

pub(crate) const DYNAMO: Spelling = Spelling {
    norms: Norms::Reciprocal,
    ropes: Ropes::Slices,
    attentions: Attentions::Sdpa,
    mask: Mask::Causal,
    never: f32::NEG_INFINITY,
    dtype: DType::F32,
    bias: false,
    qk_norm: true,
    tied: true,
    theta: 1e4,
    layers: 2,
    fused: false,
};

pub(crate) struct Build {
    pub(crate) module: Module,
    pub(crate) graph: Graph,
    pub(crate) how: Spelling,
}

const LINEAR: Op = Op::Linear { n: 1, bias: false, norm: None, post: Post::None };

impl Build {
    pub(crate) fn new(how: Spelling) -> Self {
        Build { module: Module::new("m"), graph: Graph::new("main"), how }
    }

    pub(crate) fn op(&mut self, op: Op, inputs: &[Operand]) -> Operand {
        Operand::Value(self.graph.emit(&self.module, op, inputs.to_vec(), &["v"]).unwrap()[0])
    }

    pub(crate) fn shape(&self, x: Operand) -> Vec<usize> {
        self.module.operand_type(&self.graph, x).shape().unwrap()
    }

    pub(crate) fn literal(&mut self, dtype: DType, shape: &[usize], data: Vec<f32>) -> Operand {
        let ty = Type::new(dtype, shape.iter().copied());
        let data = data.into_iter().map(|v| match dtype {
            DType::BF16 => half::bf16::from_f32(v).to_f32(),
            DType::F16 => half::f16::from_f32(v).to_f32(),
            _ => v,
        });
        Operand::Weight(self.module.add_weight("c", ty, WeightDef::Literal(Data::F32(data.collect()))))
    }

    pub(crate) fn bools(&mut self, shape: &[usize], data: Vec<bool>) -> Operand {
        let ty = Type::new(DType::Bool, shape.iter().copied());
        Operand::Weight(self.module.add_weight("c", ty, WeightDef::Literal(Data::Bool(data))))
    }

    pub(crate) fn number(&mut self, dtype: DType, v: f32) -> Operand {
        self.literal(dtype, &[], vec![v])
    }

    pub(crate) fn weight(&mut self, name: &str, shape: &[usize], dtype: DType) -> Operand {
        let ty = Type::new(dtype, shape.iter().copied());
        let id = self.module.weight(name);
        Operand::Weight(id.unwrap_or_else(|| self.module.add_weight(name, ty, WeightDef::Source)))
    }

    pub(crate) fn cast(&mut self, x: Operand, to: DType) -> Operand {
        if self.module.operand_type(&self.graph, x).dtype == to {
            x
        } else {
            self.op(Op::Cast { to, wrap: false }, &[x])
        }
    }

    pub(crate) fn linear(&mut self, x: Operand, name: &str, n: usize, bias: bool) -> Operand {
        let k = *self.shape(x).last().unwrap();
        let w = self.weight(&format!("{name}.weight"), &[n, k], self.how.dtype);
        let x = self.cast(x, DType::F32);
        let y = self.op(LINEAR, &[x, w]);
        let y = self.cast(y, self.how.dtype);
        if bias {
            let b = self.weight(&format!("{name}.bias"), &[n], self.how.dtype);
            return self.op(Op::Add {}, &[b, y]);
        }
        y
    }

    pub(crate) fn norm(&mut self, x: Operand, name: &str) -> Operand {
        let eps = 1e-6;
        let width = *self.shape(x).last().unwrap();
        let weight = self.weight(&format!("{name}.weight"), &[width], self.how.dtype);
        let rank = self.shape(x).len() as i64;
        let x = self.cast(x, DType::F32);
        let mean = |b: &mut Self, squares| b.op(Op::Reduce { kind: Reduce::Mean, axes: vec![rank - 1] }, &[squares]);
        let (two, one) = (self.number(DType::F32, 2.0), self.number(DType::F32, 1.0));
        let e = self.literal(DType::F32, &[1], vec![eps]);
        let pow = Op::Binary { kind: Binary::Pow };
        let sqrt = Op::Unary { kind: Unary::Sqrt };
        let y = match self.how.norms {
            Norms::Given => self.op(Op::Normalize { kind: Norm::Rms, eps }, &[x]),
            norms => {
                let squares = if norms == Norms::Quotient {
                    self.op(Op::Mul {}, &[x, x])
                } else {
                    self.op(pow.clone(), &[x, two])
                };
                let m = mean(self, squares);
                let m = self.op(Op::Add {}, &[m, e]);
                match norms {
                    Norms::Reciprocal => {
                        let r = self.op(sqrt, &[m]);
                        let r = self.op(Op::Unary { kind: Unary::Reciprocal }, &[r]);
                        self.op(Op::Mul {}, &[x, r])
                    }
                    Norms::Quotient => {
                        let r = self.op(sqrt, &[m]);
                        let r = self.op(Op::Binary { kind: Binary::Div }, &[one, r]);
                        self.op(Op::Mul {}, &[r, x])
                    }
                    Norms::Divided => {
                        let r = self.op(sqrt, &[m]);
                        self.op(Op::Binary { kind: Binary::Div }, &[x, r])
                    }
                    _ => {
                        let half = self.number(DType::F32, -0.5);
                        let r = self.op(pow, &[m, half]);
                        self.op(Op::Mul {}, &[x, r])
                    }
                }
            }
        };
        let y = self.cast(y, self.how.dtype);
        let inputs = if self.how.norms == Norms::Divided { [y, weight] } else { [weight, y] };
        self.op(Op::Mul {}, &inputs)
    }

    pub(crate) fn reshape(&mut self, x: Operand, dims: &[usize]) -> Operand {
        self.op(Op::Reshape { dims: dims.iter().map(|n| *n as i64).collect() }, &[x])
    }

    pub(crate) fn transpose(&mut self, x: Operand, perm: &[i64]) -> Operand {
        self.op(Op::Transpose { perm: perm.to_vec() }, &[x])
    }

    /// Features from..to of the last dimension, every step-th.
    pub(crate) fn slice(&mut self, x: Operand, from: usize, to: usize, step: usize) -> Operand {
        let shape = self.shape(x);
        let mut starts = vec![0; shape.len()];
        let mut ends: Vec<i64> = shape.iter().map(|n| *n as i64).collect();
        let mut steps = vec![1; shape.len()];
        *starts.last_mut().unwrap() = from as i64;
        *ends.last_mut().unwrap() = to as i64;
        *steps.last_mut().unwrap() = step as i64;
        self.op(Op::Slice { starts, ends, steps }, &[x])
    }

    pub(crate) fn neg(&mut self, x: Operand) -> Operand {
        self.op(Op::Unary { kind: Unary::Neg }, &[x])
    }

    pub(crate) fn concat(&mut self, parts: &[Operand]) -> Operand {
        let axis = self.shape(parts[0]).len() as i64 - 1;
        self.op(Op::Concat { axis }, parts)
    }

    pub(crate) fn mul(&mut self, a: Operand, b: Operand) -> Operand {
        self.op(Op::Mul {}, &[a, b])
    }

    pub(crate) fn add(&mut self, a: Operand, b: Operand) -> Operand {
        self.op(Op::Add {}, &[a, b])
    }

    /// Cosines and sines of `rotated` features, `[T, rotated / 2]`.
    pub(crate) fn angles(&self, rotated: usize) -> [Vec<f32>; 2] {
        let angle = |i: usize| {
            let (p, k) = (i / (rotated / 2), i % (rotated / 2));
            p as f32 * (1.0 / libm::powf(self.how.theta, (2 * k) as f32 / rotated as f32))
        };
        let all = |f: fn(f32) -> f32| (0..TOKENS * rotated / 2).map(|i| f(angle(i))).collect();
        [all(libm::cosf), all(libm::sinf)]
    }

    /// Both halves alike: `[1, 1, T, d]`, or `[1, T, 1, d]`.
    pub(crate) fn wide_tables(&mut self, shape: &[usize]) -> [Operand; 2] {
        let rotated = *shape.last().unwrap();
        let dtype = self.how.dtype;
        self.angles(rotated).map(|t| {
            let twice = t.chunks(rotated / 2).flat_map(|row| [row, row].concat()).collect();
            self.literal(dtype, shape, twice)
        })
    }

    pub(crate) fn rope(&mut self, x: Operand) -> Operand {
        let d = *self.shape(x).last().unwrap();
        match self.how.ropes {
            Ropes::Given => {
                let dtype = self.how.dtype;
                let [cos, sin] = self.angles(d).map(|t| self.literal(dtype, &[1, TOKENS, d / 2], t));
                self.op(Op::Rotary { interleaved: false }, &[x, cos, sin])
            }
            Ropes::Halves => {
                let dtype = self.how.dtype;
                let [cos, sin] = self.angles(d).map(|t| self.literal(dtype, &[1, 1, TOKENS, d / 2], t));
                let (lo, hi) = (self.slice(x, 0, d / 2, 1), self.slice(x, d / 2, d, 1));
                let (a, b) = (self.mul(lo, cos), self.mul(hi, sin));
                let first = self.op(Op::Binary { kind: Binary::Sub }, &[a, b]);
                let (a, b) = (self.mul(sin, lo), self.mul(cos, hi));
                let second = self.add(b, a);
                self.concat(&[first, second])
            }
            Ropes::Neighbors => self.neighbors(x, d),
            how => {
                let shape = if how == Ropes::BeforeHeads { [1, TOKENS, 1, d] } else { [1, 1, TOKENS, d] };
                let [cos, sin] = self.wide_tables(&shape);
                let (lo, hi) = if how == Ropes::Reshaped {
                    let shape = self.shape(x);
                    let two = self.reshape(x, &[&shape[..3], &[2, d / 2]].concat());
                    let half = |b: &mut Self, i: i64| {
                        let mut starts = vec![0; 5];
                        starts[3] = i;
                        let mut ends: Vec<i64> = b.shape(two).iter().map(|n| *n as i64).collect();
                        ends[3] = i + 1;
                        let part = b.op(Op::Slice { starts, ends, steps: vec![1; 5] }, &[two]);
                        b.reshape(part, &[&shape[..3], &[d / 2]].concat())
                    };
                    (half(self, 0), half(self, 1))
                } else {
                    (self.slice(x, 0, d / 2, 1), self.slice(x, d / 2, d, 1))
                };
                let hi = self.neg(hi);
                let turned = self.concat(&[hi, lo]);
                let (a, b) = (self.mul(x, cos), self.mul(turned, sin));
                self.add(a, b)
            }
        }
    }

    /// Pairs of neighbors rotated and stacked again, of all features or of the first ones.
    pub(crate) fn neighbors(&mut self, x: Operand, rotated: usize) -> Operand {
        let shape = self.shape(x);
        let d = shape[3];
        let [cos, sin] = self.angles(rotated).map(|t| self.literal(DType::F32, &[1, 1, TOKENS, rotated / 2], t));
        let (even, odd) = (self.slice(x, 0, rotated, 2), self.slice(x, 1, rotated, 2));
        let (a, c) = (self.mul(even, cos), self.mul(odd, sin));
        let first = self.op(Op::Binary { kind: Binary::Sub }, &[a, c]);
        let (a, c) = (self.mul(odd, cos), self.mul(even, sin));
        let second = self.add(a, c);
        let wide = [&shape[..3], &[rotated / 2, 1]].concat();
        let (first, second) = (self.reshape(first, &wide), self.reshape(second, &wide));
        let y = self.concat(&[first, second]);
        let y = self.reshape(y, &[&shape[..3], &[rotated]].concat());
        if rotated == d {
            return y;
        }
        let rest = self.slice(x, rotated, d, 1);
        self.concat(&[y, rest])
    }

    pub(crate) fn split_heads(&mut self, x: Operand, heads: usize) -> Operand {
        self.reshape(x, &[1, TOKENS, heads, WIDTH])
    }

    /// Repeats key heads for the query heads that share them.
    pub(crate) fn repeat(&mut self, x: Operand) -> Operand {
        let x = self.reshape(x, &[1, KV_HEADS, 1, TOKENS, WIDTH]);
        let dims = [1, KV_HEADS, HEADS / KV_HEADS, TOKENS, WIDTH].map(|n| n as i64).to_vec();
        let x = self.op(Op::Expand { dims }, &[x]);
        self.reshape(x, &[1, HEADS, TOKENS, WIDTH])
    }

    pub(crate) fn allowed(&self) -> Vec<bool> {
        (0..TOKENS * TOKENS).map(|i| self.how.mask.sees(i / TOKENS, i % TOKENS)).collect()
    }

    pub(crate) fn added_mask(&mut self) -> Operand {
        let never = self.how.never;
        let numbers = self.allowed().iter().map(|see| if *see { 0.0 } else { never }).collect();
        self.literal(self.how.dtype, &[1, 1, TOKENS, TOKENS], numbers)
    }

    pub(crate) fn attention(&mut self, q: Operand, k: Operand, v: Operand) -> Operand {
        let (k, v) = (self.repeat(k), self.repeat(v));
        let (scale, dtype) = (1.0 / (WIDTH as f32).sqrt(), self.how.dtype);
        match self.how.attentions {
            Attentions::Given => {
                let allowed = self.allowed();
                let mask = self.bools(&[1, 1, TOKENS, TOKENS], allowed);
                self.op(Op::Sdpa { scale, cap: None, mask: None }, &[q, k, v, mask])
            }
            Attentions::Sdpa => {
                let root = self.number(dtype, scale.sqrt());
                let k = self.reshape(k, &[HEADS, TOKENS, WIDTH]);
                let k = self.transpose(k, &[0, 2, 1]);
                let k = self.reshape(k, &[1, HEADS, WIDTH, TOKENS]);
                let (q, k) = (self.mul(q, root), self.mul(k, root));
                let s = self.op(Op::Matmul {}, &[q, k]);
                let s = if self.how.mask == Mask::Full {
                    s
                } else {
                    let mask = self.added_mask();
                    self.add(s, mask)
                };
                let p = self.op(Op::Softmax {}, &[s]);
                let nan = self.op(Op::Unary { kind: Unary::IsNan }, &[p]);
                let zero = self.number(dtype, 0.0);
                let p = self.op(Op::Select {}, &[nan, zero, p]);
                self.op(Op::Matmul {}, &[p, v])
            }
            how => {
                let k = self.transpose(k, &[0, 1, 3, 2]);
                let s = self.op(Op::Matmul {}, &[q, k]);
                let s = if how == Attentions::Eager {
                    let by = self.number(dtype, scale);
                    let s = self.mul(s, by);
                    let mask = self.added_mask();
                    self.add(mask, s)
                } else {
                    let by = self.number(dtype, (WIDTH as f32).sqrt());
                    let s = self.op(Op::Binary { kind: Binary::Div }, &[s, by]);
                    let allowed = self.allowed();
                    let mask = self.bools(&[TOKENS, TOKENS], allowed);
                    let never = self.number(dtype, self.how.never);
                    self.op(Op::Select {}, &[mask, s, never])
                };
                let s = self.cast(s, DType::F32);
                let p = self.op(Op::Softmax {}, &[s]);
                let p = self.cast(p, dtype);
                self.op(Op::Matmul {}, &[p, v])
            }
        }
    }

    fn layer(&mut self, h: Operand, l: usize) -> Operand {
        let bias = self.how.bias;
        let x = self.norm(h, &format!("l{l}.attn_norm"));
        let (wide, narrow) = (HEADS * WIDTH, KV_HEADS * WIDTH);
        let all = self.how.fused.then(|| self.linear(x, &format!("l{l}.qkv"), wide + 2 * narrow, bias));
        let part = |b: &mut Self, name: &str, from: usize, n: usize| match all {
            Some(all) => b.slice(all, from, from + n, 1),
            None => b.linear(x, &format!("l{l}.{name}"), n, bias),
        };
        let q = part(self, "q", 0, wide);
        let mut q = self.split_heads(q, HEADS);
        if self.how.qk_norm {
            q = self.norm(q, &format!("l{l}.q_norm"));
        }
        let k = part(self, "k", wide, narrow);
        let mut k = self.split_heads(k, KV_HEADS);
        if self.how.qk_norm {
            k = self.norm(k, &format!("l{l}.k_norm"));
        }
        let v = part(self, "v", wide + narrow, narrow);
        let v = self.split_heads(v, KV_HEADS);
        if self.how.ropes == Ropes::BeforeHeads {
            (q, k) = (self.rope(q), self.rope(k));
        }
        let heads = |b: &mut Self, x| b.transpose(x, &[0, 2, 1, 3]);
        let (mut q, mut k, v) = (heads(self, q), heads(self, k), heads(self, v));
        if self.how.ropes != Ropes::BeforeHeads {
            (q, k) = (self.rope(q), self.rope(k));
        }
        let a = self.attention(q, k, v);
        let a = self.transpose(a, &[0, 2, 1, 3]);
        let a = self.reshape(a, &[1, TOKENS, HEADS * WIDTH]);
        let a = self.linear(a, &format!("l{l}.o"), HIDDEN, false);
        let h = self.add(h, a);
        let x = self.norm(h, &format!("l{l}.mlp_norm"));
        let gate = self.linear(x, &format!("l{l}.gate"), INNER, false);
        let s = self.op(Op::Unary { kind: Unary::Sigmoid }, &[gate]);
        let gate = self.mul(gate, s);
        let up = self.linear(x, &format!("l{l}.up"), INNER, false);
        let m = self.mul(gate, up);
        let m = self.linear(m, &format!("l{l}.down"), HIDDEN, false);
        self.add(h, m)
    }

    /// The whole decoder.
    pub(crate) fn decoder(how: Spelling) -> VerifiedModule {
        let mut b = Build::new(how);
        let ids = Operand::Value(b.graph.param("input_ids", Type::new(DType::I64, [1usize, TOKENS])));
        let table = b.weight("embed.weight", &[VOCAB, HIDDEN], how.dtype);
        let mut h = b.op(Op::Gather { axis: 0 }, &[table, ids]);
        for l in 0..how.layers {
            h = b.layer(h, l);
        }
        let x = b.norm(h, "norm");
        let head = if how.tied { "embed" } else { "lm_head" };
        let y = b.linear(x, head, VOCAB, false);
        b.done(y)
    }

    /// The module of what was built, giving `result`.
    pub(crate) fn done(mut self, result: Operand) -> VerifiedModule {
        self.graph.results = vec![result.value().unwrap()];
        self.module.graphs.push(self.graph);
        VerifiedModule::new(self.module).unwrap_or_else(|e| panic!("{}", e[0]))
    }
}
