//! The pre-norm decoder that all families share, as numbers, switches and tensor names; and the graph it stands for.
//!
//! `h = E[ids]`; per layer `h += Attention(RMS(h))`, then `h += down(silu(gate(RMS(h))) · up(RMS(h)))`;
//! `logits = RMS(h) Wᵀ`. The graph is the plain full-sequence one; caches, buckets and fusions are the passes' business.

use std::collections::BTreeSet;

use dlx_ir::{Error, Graph, Mask, Module, Op, Operand, Post, Type, ValueId, WeightDef};

use crate::checkpoint::{Checkpoint, Config};

/// A decoder-only transformer.
#[derive(Clone, Debug)]
pub(super) struct Decoder {
    pub layers: usize,
    pub hidden: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub intermediate: usize,
    pub vocab: usize,
    pub eps: f32,
    pub theta: f32,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// Whether q and k are normalised per head.
    pub qk_norm: bool,
    /// Whether the embedding is the head too.
    pub tied: bool,
    /// Factor on the embeddings.
    pub embed_scale: f32,
    /// Factor on the logits.
    pub logit_scale: f32,
    pub mask: Mask,
    pub names: &'static Names,
}

/// Tensor names; `{}` stands for the layer.
#[derive(Debug)]
pub(super) struct Names {
    pub embed: &'static str,
    pub attn_norm: &'static str,
    pub q: &'static str,
    pub k: &'static str,
    pub v: &'static str,
    pub o: &'static str,
    pub mlp_norm: &'static str,
    pub gate: &'static str,
    pub up: &'static str,
    pub down: &'static str,
    pub final_norm: &'static str,
    pub head: &'static str,
}

/// Names of the Qwen-shaped families.
pub(super) const QWEN: Names = Names {
    embed: "model.embed_tokens",
    attn_norm: "model.layers.{}.input_layernorm",
    q: "model.layers.{}.self_attn.q_proj",
    k: "model.layers.{}.self_attn.k_proj",
    v: "model.layers.{}.self_attn.v_proj",
    o: "model.layers.{}.self_attn.o_proj",
    mlp_norm: "model.layers.{}.post_attention_layernorm",
    gate: "model.layers.{}.mlp.gate_proj",
    up: "model.layers.{}.mlp.up_proj",
    down: "model.layers.{}.mlp.down_proj",
    final_norm: "model.norm",
    head: "lm_head",
};

impl Decoder {
    /// Reads the config keys of the Qwen-shaped families; `head_dim` defaults to hidden size / heads.
    pub(super) fn from_qwen_config(config: &Config, qkv_bias: bool, qk_norm: bool, mask: Mask) -> Result<Self, Error> {
        let hidden = config.usize("hidden_size")?;
        let heads = config.usize("num_attention_heads")?;
        let kv_heads = config.opt_usize("num_key_value_heads")?.unwrap_or(heads);
        let head_dim = config.opt_usize("head_dim")?.unwrap_or(hidden / heads);
        if heads % kv_heads != 0 {
            return Err(
                config.error("num_key_value_heads", format!("{kv_heads} key heads do not divide {heads} heads"))
            );
        }
        if head_dim == 0 || head_dim % 2 != 0 {
            return Err(config.error("head_dim", format!("{head_dim} cannot be rotated; it must be even")));
        }
        if let Some(activation) = config.opt_str("hidden_act")?.filter(|a| *a != "silu") {
            return Err(config.error("hidden_act", format!("`{activation}` is not supported; only silu is")));
        }
        // Newer files nest the rotary keys.
        let nested = config.object("rope_parameters")?;
        let rope = nested.as_ref().unwrap_or(config);
        for (owner, key) in [(config, "rope_scaling"), (rope, "rope_type")] {
            if owner.get(key).is_some_and(|v| v.as_str() != Some("default")) {
                return Err(owner.error(key, "scaled rotary embeddings are not supported"));
            }
        }
        if config.opt_bool("use_sliding_window")? == Some(true) {
            return Err(config.error("use_sliding_window", "sliding-window attention is not supported"));
        }
        Ok(Decoder {
            layers: config.usize("num_hidden_layers")?,
            hidden,
            heads,
            kv_heads,
            head_dim,
            intermediate: config.usize("intermediate_size")?,
            vocab: config.usize("vocab_size")?,
            eps: config.f64("rms_norm_eps")? as f32,
            theta: rope.opt_f64("rope_theta")?.unwrap_or(10000.0) as f32,
            qkv_bias,
            qk_norm,
            tied: config.opt_bool("tie_word_embeddings")?.unwrap_or(false),
            embed_scale: 1.0,
            logit_scale: 1.0,
            mask,
            names: &QWEN,
        })
    }

    /// Builds `@forward(ids: i32[T], pos: i32[T]) -> f32[T, vocab]` and checks that the checkpoint holds exactly the
    /// tensors that it reads. Returns notes about tensors that are left out for a reason.
    pub(super) fn build(&self, name: &str, checkpoint: &Checkpoint) -> Result<(Module, Vec<String>), Error> {
        let mut b = Builder {
            checkpoint,
            module: Module::new(name),
            graph: Graph::new("forward"),
            read: BTreeSet::new(),
            prefix: String::new(),
        };
        let ids = b.graph.param("ids", Type::new(dlx_ir::DType::I32, ["T"]));
        let pos = b.graph.param("pos", Type::new(dlx_ir::DType::I32, ["T"]));
        let table = b.weight(self.names.embed, "weight", &[self.vocab, self.hidden])?;
        let mut h = b.node(Op::Embed {}, vec![Operand::Value(ids), table], "embed")?;
        if self.embed_scale != 1.0 {
            h = b.node(Op::Scale { by: self.embed_scale }, vec![Operand::Value(h)], "embed_scaled")?;
        }
        let mask = b.node(Op::Mask { rule: self.mask }, vec![Operand::Value(ids)], "mask")?;
        let rope = Op::RopeTable { theta: self.theta, head_dim: self.head_dim as u32 };
        let rope = b.node(rope, vec![Operand::Value(pos)], "rope")?;
        for layer in 0..self.layers {
            b.prefix = layer.to_string();
            h = self.layer(&mut b, h, mask, rope)?;
        }
        b.prefix.clear();
        let norm = b.norm(h, self.names.final_norm, self.hidden, self.eps, "final_norm")?;
        let head = if self.tied { table } else { b.weight(self.names.head, "weight", &[self.vocab, self.hidden])? };
        let mut logits = b.node(PLAIN, vec![Operand::Value(norm), head], "logits")?;
        if self.logit_scale != 1.0 {
            logits = b.node(Op::Scale { by: self.logit_scale }, vec![Operand::Value(logits)], "logits_scaled")?;
        }
        b.graph.results = vec![logits];
        let notes = self.leftovers(&b)?;
        b.module.graphs.push(b.graph);
        Ok((b.module, notes))
    }

    fn layer(&self, b: &mut Builder<'_>, h: ValueId, mask: ValueId, rope: ValueId) -> Result<ValueId, Error> {
        let (n, hd) = (self.names, self.head_dim);
        let (q_out, kv_out) = (self.heads * hd, self.kv_heads * hd);
        let x = b.norm(h, n.attn_norm, self.hidden, self.eps, "attn_norm")?;
        let mut q = b.linear(x, n.q, [q_out, self.hidden], self.qkv_bias, "q")?;
        let mut k = b.linear(x, n.k, [kv_out, self.hidden], self.qkv_bias, "k")?;
        let v = b.linear(x, n.v, [kv_out, self.hidden], self.qkv_bias, "v")?;
        if self.qk_norm {
            q = b.norm(q, "model.layers.{}.self_attn.q_norm", hd, self.eps, "q_norm")?;
            k = b.norm(k, "model.layers.{}.self_attn.k_norm", hd, self.eps, "k_norm")?;
        }
        let rotate = Op::Rope { head_dim: hd as u32, norm: None };
        q = b.node(rotate.clone(), vec![Operand::Value(q), Operand::Value(rope)], "q_rope")?;
        k = b.node(rotate, vec![Operand::Value(k), Operand::Value(rope)], "k_rope")?;
        let attention = Op::Attention { head_dim: hd as u32, mask: None };
        let a = b.node(attention, [q, k, v, mask].map(Operand::Value).to_vec(), "attn")?;
        let a = b.linear(a, n.o, [self.hidden, q_out], false, "attn_out")?;
        let h = b.node(Op::Add {}, [h, a].map(Operand::Value).to_vec(), "attn_sum")?;
        let x = b.norm(h, n.mlp_norm, self.hidden, self.eps, "mlp_norm")?;
        let gate = b.linear(x, n.gate, [self.intermediate, self.hidden], false, "gate")?;
        let up = b.linear(x, n.up, [self.intermediate, self.hidden], false, "up")?;
        let gate = b.node(Op::Silu {}, vec![Operand::Value(gate)], "gate_silu")?;
        let m = b.node(Op::Mul {}, [gate, up].map(Operand::Value).to_vec(), "mlp")?;
        let m = b.linear(m, n.down, [self.hidden, self.intermediate], false, "mlp_out")?;
        b.node(Op::Add {}, [h, m].map(Operand::Value).to_vec(), "out")
    }

    /// Every tensor must have been read, but for the few that checkpoints are known to carry for nothing.
    fn leftovers(&self, b: &Builder<'_>) -> Result<Vec<String>, Error> {
        let mut notes = Vec::new();
        let head = format!("{}.weight", self.names.head);
        for name in b.checkpoint.names().filter(|n| !b.read.contains(*n)) {
            if self.tied && name == head {
                notes.push(format!("{name} is left out: the config ties the head to the embedding"));
            } else if name.ends_with("rotary_emb.inv_freq") {
                notes.push(format!("{name} is left out: it follows from rope_theta"));
            } else {
                let file = b.checkpoint.tensor(name).map_or(b.checkpoint.dir(), |t| t.file);
                return Err(Error::new(format!("{}: `{name}`", file.display()), "is not a tensor of this family")
                    .help("check model_type and the layer count in config.json, or remove the tensor"));
            }
        }
        Ok(notes)
    }
}

const PLAIN: Op = Op::Linear { n: 1, bias: false, norm: None, post: Post::None };

/// The graph under construction; value names get the layer as prefix.
struct Builder<'a> {
    checkpoint: &'a Checkpoint,
    module: Module,
    graph: Graph,
    read: BTreeSet<String>,
    /// Number of the layer, empty outside the layers.
    prefix: String,
}

impl Builder<'_> {
    fn node(&mut self, op: Op, inputs: Vec<Operand>, name: &str) -> Result<ValueId, Error> {
        let name = if self.prefix.is_empty() { name.to_owned() } else { format!("l{}.{name}", self.prefix) };
        Ok(self.graph.emit(&self.module, op, inputs, &[&name])?[0])
    }

    fn weight(&mut self, template: &str, leaf: &str, shape: &[usize]) -> Result<Operand, Error> {
        let name = format!("{}.{leaf}", template.replace("{}", &self.prefix));
        let tensor = self.checkpoint.require(&name, shape)?;
        let ty = Type::new(tensor.dtype, shape.iter().copied());
        let id = self.module.add_weight(&name, ty, WeightDef::Source);
        self.read.insert(name);
        Ok(Operand::Weight(id))
    }

    fn linear(
        &mut self,
        x: ValueId,
        template: &str,
        shape: [usize; 2],
        bias: bool,
        name: &str,
    ) -> Result<ValueId, Error> {
        let mut inputs = vec![Operand::Value(x), self.weight(template, "weight", &shape)?];
        if bias {
            inputs.push(self.weight(template, "bias", &shape[..1])?);
        }
        self.node(Op::Linear { n: 1, bias, norm: None, post: Post::None }, inputs, name)
    }

    fn norm(&mut self, x: ValueId, template: &str, len: usize, eps: f32, name: &str) -> Result<ValueId, Error> {
        let w = self.weight(template, "weight", &[len])?;
        self.node(Op::RmsNorm { eps }, vec![Operand::Value(x), w], name)
    }
}
