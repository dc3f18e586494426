//! The pre-norm decoder that all families share, as numbers, switches and tensor names; and the graph it stands for.
//!
//! `h = E[ids]`; per layer `h += Attention(RMS(h))`, then `h += down(silu(gate(RMS(h))) · up(RMS(h)))`;
//! `logits = RMS(h) Wᵀ`. The graph is the plain full-sequence one; caches, buckets and fusions are the passes' business.

use std::collections::BTreeSet;

use dlx_ir::{Error, Graph, Mask, Module, Op, Operand, Post, Type, ValueId, VerifiedModule, WeightDef};

use super::facts::Facts;
use super::{keys, rope};
use crate::checkpoint::{Checkpoint, Config};

/// Keys of `config.json` that the Qwen-shaped families read.
const QWEN_KEYS: &[&str] = &[
    "attention_bias",
    "bd_size",
    "block_size",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "layer_types",
    "max_position_embeddings",
    "max_window_layers",
    "mlp_bias",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "qk_norm",
    "qkv_bias",
    "rms_norm_eps",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "use_qk_norm",
    "use_sliding_window",
    "vocab_size",
];

/// A decoder-only transformer.
#[derive(Clone, Debug)]
pub struct Decoder {
    /// Number of layers.
    pub layers: usize,
    /// Features of a row between layers.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Features of a head.
    pub head_dim: usize,
    /// Features inside the MLP.
    pub intermediate: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Epsilon of the norms.
    pub eps: f32,
    /// Base of the rotary embedding.
    pub theta: f32,
    /// Whether q, k and v must have biases; elsewhere biases are those that are stored.
    pub qkv_bias: bool,
    /// Whether q and k are normalised per head.
    pub qk_norm: bool,
    /// Whether the config says that the embedding is the head too.
    pub tied: bool,
    /// Key that says so.
    pub(super) tied_key: &'static str,
    /// Factor on the embeddings.
    pub embed_scale: f32,
    /// Factor on the logits.
    pub logit_scale: f32,
    /// What attends what.
    pub mask: Mask,
    pub(super) names: &'static Names,
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
    ///
    /// # Errors
    /// A key that is wrong, or that asks for mathematics that is not compiled.
    pub(super) fn from_qwen_config(
        config: &Config,
        qkv_bias: bool,
        qk_norm: bool,
        mask: Mask,
        facts: &mut Facts,
    ) -> Result<Self, Error> {
        keys::check(config, QWEN_KEYS, facts)?;
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
        for key in ["qk_norm", "use_qk_norm"] {
            if config.opt_bool(key)?.is_some_and(|says| says != qk_norm) {
                return Err(config
                    .error(
                        key,
                        format!(
                            "is {}, and this family has {} norms of q and k",
                            !qk_norm,
                            if qk_norm { "" } else { "no" }
                        ),
                    )
                    .help("use the model_type of the model whose code has this key"));
            }
        }
        let layers = config.usize("num_hidden_layers")?;
        sliding_window(config, layers, facts)?;
        Ok(Decoder {
            layers,
            hidden,
            heads,
            kv_heads,
            head_dim,
            intermediate: config.usize("intermediate_size")?,
            vocab: config.usize("vocab_size")?,
            eps: config.f64("rms_norm_eps")? as f32,
            theta: rope::base(config, facts)?,
            qkv_bias,
            qk_norm,
            tied: config.opt_bool("tie_word_embeddings")?.unwrap_or(false),
            tied_key: "tie_word_embeddings",
            embed_scale: 1.0,
            logit_scale: 1.0,
            mask,
            names: &QWEN,
        })
    }

    /// Builds `@forward(ids: i32[T], pos: i32[T]) -> f32[T, vocab]` and checks that the checkpoint holds exactly the
    /// tensors that it reads.
    ///
    /// # Errors
    /// A tensor that is missing, too many, or of another shape, or flags that contradict the tensors.
    pub(super) fn build(
        &self,
        name: &str,
        checkpoint: &Checkpoint,
        facts: &mut Facts,
    ) -> Result<VerifiedModule, Error> {
        self.check_flags(checkpoint, facts)?;
        let own_head = self.own_head(checkpoint, facts)?;
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
        let head = if own_head { b.weight(self.names.head, "weight", &[self.vocab, self.hidden])? } else { table };
        let mut logits = b.node(PLAIN, vec![Operand::Value(norm), head], "logits")?;
        if self.logit_scale != 1.0 {
            logits = b.node(Op::Scale { by: self.logit_scale }, vec![Operand::Value(logits)], "logits_scaled")?;
        }
        b.graph.results = vec![logits];
        self.leftovers(&b, facts)?;
        b.module.graphs.push(b.graph);
        VerifiedModule::new(b.module).map_err(Error::first_of)
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

    /// Whether the head is a tensor of its own. A stored head that differs from the embedding is used whatever the config
    /// says, as transformers 5 does; one that is equal is not read twice.
    fn own_head(&self, checkpoint: &Checkpoint, facts: &mut Facts) -> Result<bool, Error> {
        let (embed, head) = (format!("{}.weight", self.names.embed), format!("{}.weight", self.names.head));
        let says = format!("config.json {}", self.tied_key);
        let shape = [self.vocab, self.hidden];
        if checkpoint.tensor(&head).is_none() {
            if !self.tied {
                return Err(Error::new(checkpoint.dir().display(), format!("there is no tensor `{head}`, and {says} is not true"))
                    .help(format!(
                        "download the file that holds it; if the model card says that the embedding is the head, set {} to true",
                        self.tied_key
                    )));
            }
            facts.add("head", &embed, says);
            return Ok(false);
        }
        checkpoint.require(&embed, &shape)?;
        checkpoint.require(&head, &shape)?;
        if !self.tied {
            facts.add("head", &head, says);
            return Ok(true);
        }
        let equal = self.same_rows(checkpoint, &embed, &head)?;
        if equal {
            facts.note(format!("{head} is left out: it equals the embedding, to which {says} ties it"));
            facts.add("head", &embed, says);
        } else {
            facts.note(format!("{head} is used: it differs from the embedding, although {says} ties them"));
            facts.add("head", &head, "the stored tensor");
        }
        Ok(!equal)
    }

    fn same_rows(&self, checkpoint: &Checkpoint, a: &str, b: &str) -> Result<bool, Error> {
        let (mut x, mut y) = (vec![0.0; self.hidden], vec![0.0; self.hidden]);
        for row in 0..self.vocab {
            checkpoint.read_rows(a, row..row + 1, &mut x)?;
            checkpoint.read_rows(b, row..row + 1, &mut y)?;
            let same = x.iter().zip(&y).all(|(x, y)| x.to_bits() == y.to_bits());
            if !same {
                return Ok(false);
            }
            if row % 1024 == 1023 {
                checkpoint.release_rows(a, row - 1023..row + 1);
                checkpoint.release_rows(b, row - 1023..row + 1);
            }
        }
        Ok(true)
    }

    /// Flags about biases must say what is stored, and so must the number of layers.
    fn check_flags(&self, checkpoint: &Checkpoint, facts: &mut Facts) -> Result<(), Error> {
        let config = &checkpoint.config;
        let stored = |template: &str| checkpoint.tensor(&format!("{}.bias", template.replace("{}", "0"))).is_some();
        for (keys, template) in
            [(&["attention_bias", "qkv_bias", "include_qkv_bias"][..], self.names.q), (&["mlp_bias"], self.names.gate)]
        {
            let stored = stored(template);
            for key in keys {
                match config.opt_bool(key)? {
                    Some(true) if !stored => {
                        let what = format!("is true, but there is no tensor `{}.bias`", template.replace("{}", "0"));
                        return Err(config
                            .error(key, what)
                            .help("download the config and the weights of one commit of the model's repository"));
                    }
                    Some(false) if stored => {
                        let what = format!("is false, but there is a tensor `{}.bias`", template.replace("{}", "0"));
                        return Err(config
                            .error(key, what)
                            .help("download the config and the weights of one commit of the model's repository"));
                    }
                    _ => {}
                }
            }
        }
        let biased =
            [self.names.q, self.names.k, self.names.v, self.names.o, self.names.gate, self.names.up, self.names.down];
        let biased: Vec<_> = biased.into_iter().filter(|n| stored(n)).filter_map(|n| n.rsplit('.').next()).collect();
        facts.add("biases", if biased.is_empty() { "none".into() } else { biased.join(", ") }, "the stored tensors");
        let layer = |name: &str| {
            let (before, after) = self.names.q.split_once("{}")?;
            let rest = name.strip_prefix(before)?;
            let (number, rest) = rest.split_at(rest.find('.')?);
            (rest.strip_prefix('.')?.split('.').next() == after.split('.').nth(1))
                .then(|| number.parse::<usize>().ok())?
        };
        let layers = checkpoint.names().filter_map(layer).max().map_or(0, |last| last + 1);
        if layers > 0 && layers != self.layers {
            let key = if config.get("n_layers").is_some() { "n_layers" } else { "num_hidden_layers" };
            let what = format!("is {}, but the files hold {layers} layers", self.layers);
            return Err(config
                .error(key, what)
                .help("download the config and all weight files of one commit of the model's repository"));
        }
        for key in ["torch_dtype", "dtype"] {
            let says = config.opt_str(key)?.map(|t| t.trim_start_matches("torch."));
            let found = checkpoint.tensor(&format!("{}.weight", self.names.embed)).map(|t| t.dtype);
            let name = found.map(|dtype| match dtype {
                dlx_ir::DType::F32 => "float32",
                dlx_ir::DType::F16 => "float16",
                _ => "bfloat16",
            });
            if let (Some(says), Some(name)) = (says, name)
                && says != name
            {
                facts.note(format!("config.json {key} is {says}; the weights are stored as {name} and read as that"));
            }
        }
        Ok(())
    }

    /// Every tensor must have been read, but for the few that checkpoints are known to carry for nothing.
    fn leftovers(&self, b: &Builder<'_>, facts: &mut Facts) -> Result<(), Error> {
        let head = format!("{}.weight", self.names.head);
        for name in b.checkpoint.names().filter(|n| !b.read.contains(*n)) {
            if name == head {
                // Said where the head was chosen.
            } else if name.ends_with("rotary_emb.inv_freq") {
                facts.note(format!("{name} is left out: it follows from the rope base"));
            } else {
                let file = b.checkpoint.tensor(name).map_or(b.checkpoint.dir(), |t| t.file);
                return Err(Error::new(
                    format!("{}: `{name}`", file.display()),
                    "is a tensor that this family does not have",
                )
                .help(looks_like(name)));
            }
        }
        Ok(())
    }
}

/// What a tensor's name says of the model that it belongs to.
fn looks_like(name: &str) -> &'static str {
    if name.contains("q_norm") || name.contains("k_norm") {
        "norms of q and k are those of Qwen3-shaped models (model_type qwen3, sdar, a2d-qwen3): use the config.json that belongs to these weights"
    } else if name.contains("experts") || name.contains("router") || name.contains("mlp.gate.") {
        "experts make it a mixture of experts, which is not compiled yet"
    } else if name.contains("visual") || name.contains("vision") {
        "it is a part of a model that sees images, which is not compiled"
    } else {
        "use the config.json that belongs to these weights; if it does, this model cannot be compiled yet"
    }
}

/// Refuses layers that attend a sliding window; a flag without such a layer changes nothing.
fn sliding_window(config: &Config, layers: usize, facts: &mut Facts) -> Result<(), Error> {
    let refuse = |key: &str, what: String| Err(config.error(key, what).help("this model cannot be compiled yet"));
    if let Some(types) = config.get("layer_types") {
        let types = types.as_array().map(Vec::as_slice).unwrap_or_default();
        if types.len() != layers {
            let what = format!("names {} layers, and num_hidden_layers is {layers}", types.len());
            return Err(config.error("layer_types", what).help("restore the file from the model's repository"));
        }
        if let Some(other) = types.iter().find(|t| t.as_str() != Some("full_attention")) {
            return refuse("layer_types", format!("{other} is not supported; only full_attention is"));
        }
    }
    if config.opt_bool("use_sliding_window")? != Some(true) {
        return Ok(());
    }
    // From this layer on windows slide, if there is a window.
    let first = config.get("max_window_layers").and_then(serde_json::Value::as_u64);
    let none = config.get("sliding_window").is_none()
        || config.get("layer_types").is_some()
        || first.is_some_and(|first| usize::try_from(first).is_ok_and(|first| first >= layers));
    if !none {
        return refuse("use_sliding_window", "sliding-window attention is not supported".into());
    }
    facts.note("config.json use_sliding_window is true, but no layer slides; all attend everything");
    Ok(())
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
        let ty = |dtype| Type::new(dtype, shape.iter().copied());
        let mut id = self.module.add_weight(&name, ty(tensor.dtype), WeightDef::Source);
        if let Some(format) = tensor.rounded {
            let to = dlx_ir::DType::Quant(format);
            id = self.module.add_weight(
                &format!("{name}.{format}"),
                ty(to),
                WeightDef::Expr(Op::Quantize { to }, vec![id]),
            );
        }
        self.read.insert(name);
        Ok(Operand::Weight(id))
    }

    fn linear(
        &mut self,
        x: ValueId,
        template: &str,
        shape: [usize; 2],
        must_have_bias: bool,
        name: &str,
    ) -> Result<ValueId, Error> {
        let mut inputs = vec![Operand::Value(x), self.weight(template, "weight", &shape)?];
        let bias = must_have_bias
            || self.checkpoint.tensor(&format!("{}.bias", template.replace("{}", &self.prefix))).is_some();
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
