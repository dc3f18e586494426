//! The public models' dimensions, configuration files and tensor names.
//!
//! Invariant: `config.json` and the tensor list of a shape come from the same row, so they always agree. The importer does
//! not use this table; it reads what is on disk.

use serde_json::{Map, Value, json};

/// Positions of a block.
const SDAR_BLOCK: i64 = 4;
const FAST_DLLM_BLOCK: i64 = 32;

/// One public model.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Name on the command line.
    pub name: &'static str,
    /// Model family.
    pub family: Family,
    /// Number of layers.
    pub layers: usize,
    pub(super) hidden: usize,
    pub(super) mlp: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) vocab: usize,
    /// Whether the LM head is the embedding and so not stored.
    pub(super) tied: bool,
}

/// The configuration dialects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    /// Dream: Qwen2-shaped, full attention.
    Dream,
    /// Fast_dLLM v2: Qwen2-shaped, block-causal.
    FastDllmV2,
    /// LLaDA: its own names.
    Llada,
    /// Qwen2 and Qwen2.5, autoregressive.
    Qwen2,
    /// Qwen3, autoregressive.
    Qwen3,
    /// SDAR: Qwen3-shaped, block-causal.
    Sdar,
}

/// What attends what.
#[derive(Clone, Copy)]
pub(super) enum Attends {
    Everything,
    /// Blocks of so many positions, and all before them; causal with blocks of one.
    Blocks(i64),
}

/// One tensor of a checkpoint.
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    /// A norm weight: all ones.
    pub(super) ones: bool,
}

impl Tensor {
    pub(super) fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes in bf16.
    pub(super) fn bytes(&self) -> u64 {
        2 * self.elements() as u64
    }
}

#[rustfmt::skip]
/// All shapes, alphabetical.
pub const SHAPES: &[Shape] = &[
    Shape { name: "dream-7b",          family: Family::Dream,      layers: 28, hidden: 3584, mlp: 18944, heads: 28, kv_heads: 4,  head_dim: 128, vocab: 152_064, tied: false },
    Shape { name: "fast-dllm-v2-1.5b", family: Family::FastDllmV2, layers: 28, hidden: 1536, mlp: 8960,  heads: 12, kv_heads: 2,  head_dim: 128, vocab: 151_936, tied: true },
    Shape { name: "llada-8b",          family: Family::Llada,      layers: 32, hidden: 4096, mlp: 12288, heads: 32, kv_heads: 32, head_dim: 128, vocab: 126_464, tied: false },
    Shape { name: "qwen2.5-0.5b",      family: Family::Qwen2,      layers: 24, hidden: 896,  mlp: 4864,  heads: 14, kv_heads: 2,  head_dim: 64,  vocab: 151_936, tied: true },
    Shape { name: "qwen2.5-1.5b",      family: Family::Qwen2,      layers: 28, hidden: 1536, mlp: 8960,  heads: 12, kv_heads: 2,  head_dim: 128, vocab: 151_936, tied: true },
    Shape { name: "qwen3-0.6b",        family: Family::Qwen3,      layers: 28, hidden: 1024, mlp: 3072,  heads: 16, kv_heads: 8,  head_dim: 128, vocab: 151_936, tied: true },
    Shape { name: "sdar-1.7b",         family: Family::Sdar,       layers: 28, hidden: 2048, mlp: 6144,  heads: 16, kv_heads: 8,  head_dim: 128, vocab: 151_936, tied: true },
    Shape { name: "sdar-4b",           family: Family::Sdar,       layers: 36, hidden: 2560, mlp: 9728,  heads: 32, kv_heads: 8,  head_dim: 128, vocab: 151_936, tied: false },
];

impl Shape {
    /// Number of weights.
    pub fn parameters(&self) -> u64 {
        self.tensors().iter().map(|t| t.elements() as u64).sum()
    }

    /// Whether q, k and v have biases.
    pub(super) fn has_bias(&self) -> bool {
        matches!(self.family, Family::Dream | Family::FastDllmV2 | Family::Qwen2)
    }

    /// Whether q and k are normalised per head.
    pub(super) fn has_head_norms(&self) -> bool {
        matches!(self.family, Family::Qwen3 | Family::Sdar)
    }

    /// What attends what.
    pub(super) fn attends(&self) -> Attends {
        match self.family {
            Family::Dream | Family::Llada => Attends::Everything,
            Family::Qwen2 | Family::Qwen3 => Attends::Blocks(1),
            Family::Sdar => Attends::Blocks(SDAR_BLOCK),
            Family::FastDllmV2 => Attends::Blocks(FAST_DLLM_BLOCK),
        }
    }

    /// Base of the rotary embedding, and epsilon of the norms.
    pub(super) fn constants(&self) -> (f64, f32) {
        if self.family == Family::Llada { (500_000.0, 1e-5) } else { (1_000_000.0, 1e-6) }
    }

    /// Every tensor, in the order of the public files.
    pub(super) fn tensors(&self) -> Vec<Tensor> {
        let mut tensors = Vec::new();
        let mut add = |name: String, shape: &[usize], ones| tensors.push(Tensor { name, shape: shape.into(), ones });
        let (h, mlp) = (self.hidden, self.mlp);
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        if self.family == Family::Llada {
            add("model.transformer.wte.weight".into(), &[self.vocab, h], false);
            for n in 0..self.layers {
                let name = |leaf: &str| format!("model.transformer.blocks.{n}.{leaf}.weight");
                add(name("attn_norm"), &[h], true);
                add(name("q_proj"), &[q, h], false);
                add(name("k_proj"), &[kv, h], false);
                add(name("v_proj"), &[kv, h], false);
                add(name("attn_out"), &[h, q], false);
                add(name("ff_norm"), &[h], true);
                add(name("ff_proj"), &[mlp, h], false);
                add(name("up_proj"), &[mlp, h], false);
                add(name("ff_out"), &[h, mlp], false);
            }
            add("model.transformer.ln_f.weight".into(), &[h], true);
            if !self.tied {
                add("model.transformer.ff_out.weight".into(), &[self.vocab, h], false);
            }
            return tensors;
        }
        let bias = self.has_bias();
        add("model.embed_tokens.weight".into(), &[self.vocab, h], false);
        for n in 0..self.layers {
            let name = |leaf: &str| format!("model.layers.{n}.{leaf}");
            add(name("input_layernorm.weight"), &[h], true);
            for (leaf, rows) in [("q", q), ("k", kv), ("v", kv)] {
                add(name(&format!("self_attn.{leaf}_proj.weight")), &[rows, h], false);
                if bias {
                    add(name(&format!("self_attn.{leaf}_proj.bias")), &[rows], false);
                }
            }
            if self.has_head_norms() {
                add(name("self_attn.q_norm.weight"), &[self.head_dim], true);
                add(name("self_attn.k_norm.weight"), &[self.head_dim], true);
            }
            add(name("self_attn.o_proj.weight"), &[h, q], false);
            add(name("post_attention_layernorm.weight"), &[h], true);
            add(name("mlp.gate_proj.weight"), &[mlp, h], false);
            add(name("mlp.up_proj.weight"), &[mlp, h], false);
            add(name("mlp.down_proj.weight"), &[h, mlp], false);
        }
        add("model.norm.weight".into(), &[h], true);
        if !self.tied {
            add("lm_head.weight".into(), &[self.vocab, h], false);
        }
        tensors
    }

    /// `config.json` and `generation_config.json`.
    pub(super) fn json_files(&self) -> Vec<(&'static str, Value)> {
        let generation = match self.family {
            Family::Dream => json!({
                "alg": "origin", "alg_temp": null, "bos_token_id": 151_643, "eos_token_id": 151_643, "eps": 0.001,
                "mask_token_id": 151_666, "pad_token_id": 151_643, "steps": 512, "temperature": 0.0,
            }),
            Family::Sdar | Family::Qwen3 => json!({
                "bos_token_id": 151_643, "do_sample": true, "eos_token_id": [151_645, 151_643], "pad_token_id": 151_643,
            }),
            Family::Llada => json!({ "bos_token_id": 126_080, "eos_token_id": 126_081, "pad_token_id": 126_081 }),
            Family::FastDllmV2 | Family::Qwen2 => {
                json!({ "bos_token_id": 151_643, "eos_token_id": [151_645, 151_643], "pad_token_id": 151_643 })
            }
        };
        vec![("config.json", self.config()), ("generation_config.json", generation)]
    }

    fn config(&self) -> Value {
        let (architecture, model_type, positions, eos) = match self.family {
            Family::Dream => ("DreamModel", "Dream", 131_072, 151_643),
            Family::FastDllmV2 => ("Fast_dLLM_QwenForCausalLM", "Fast_dLLM_Qwen", 32_768, 151_645),
            Family::Qwen2 => ("Qwen2ForCausalLM", "qwen2", 32_768, 151_645),
            Family::Sdar => ("SDARForCausalLM", "sdar", 32_768, 151_643),
            Family::Qwen3 => ("Qwen3ForCausalLM", "qwen3", 40_960, 151_645),
            Family::Llada => return self.llada_config(),
        };
        let own = match self.family {
            Family::Dream => json!({
                "mask_token_id": 151_666, "pad_token_id": 151_643,
                "auto_map": {
                    "AutoConfig": "configuration_dream.DreamConfig", "AutoModel": "modeling_dream.DreamModel",
                },
            }),
            Family::FastDllmV2 => json!({
                "bd_size": FAST_DLLM_BLOCK, "layer_types": vec!["full_attention"; self.layers],
                "auto_map": {
                    "AutoConfig": "configuration.Fast_dLLM_QwenConfig", "AutoModel": "modeling.Fast_dLLM_QwenModel",
                    "AutoModelForCausalLM": "modeling.Fast_dLLM_QwenForCausalLM",
                },
            }),
            Family::Sdar => json!({
                "attention_bias": false, "block_size": SDAR_BLOCK, "head_dim": self.head_dim, "mask_token_id": 151_669,
                "pad_token_id": 151_643, "fuse_cross_entropy": true, "debug": false,
                "auto_map": {
                    "AutoConfig": "configuration_sdar.SDARConfig", "AutoModel": "modeling_sdar.SDARModel",
                    "AutoModelForCausalLM": "modeling_sdar.SDARForCausalLM",
                },
            }),
            Family::Qwen3 => json!({ "attention_bias": false, "head_dim": self.head_dim }),
            Family::Qwen2 | Family::Llada => json!({}),
        };
        let shared = json!({
            "architectures": [architecture],
            "model_type": model_type,
            "attention_dropout": 0.0,
            "bos_token_id": 151_643,
            "eos_token_id": eos,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "initializer_range": 0.02,
            "intermediate_size": self.mlp,
            "max_position_embeddings": positions,
            "max_window_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": 1e-6,
            "rope_scaling": null,
            "rope_theta": self.constants().0,
            "sliding_window": null,
            "tie_word_embeddings": self.tied,
            "torch_dtype": "bfloat16",
            "use_cache": !matches!(self.family, Family::Dream | Family::Sdar),
            "use_sliding_window": false,
            "vocab_size": self.vocab,
        });
        merge(shared, own)
    }

    fn llada_config(&self) -> Value {
        json!({
            "activation_type": "silu",
            "alibi": false,
            "architectures": ["LLaDAModelLM"],
            "attention_dropout": 0.0,
            "attention_layer_norm": false,
            "auto_map": {
                "AutoConfig": "configuration_llada.LLaDAConfig", "AutoModel": "modeling_llada.LLaDAModelLM",
                "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM",
            },
            "bias_for_layer_norm": false,
            "block_group_size": 1,
            "block_type": "llama",
            "d_model": self.hidden,
            "embedding_size": self.vocab,
            "eos_token_id": 126_081,
            "flash_attention": false,
            "include_bias": false,
            "include_qkv_bias": false,
            "init_device": "meta",
            "input_emb_norm": false,
            "layer_norm_type": "rms",
            "layer_norm_with_affine": true,
            "mask_token_id": 126_336,
            "max_sequence_length": 4096,
            "mlp_hidden_size": self.mlp,
            "mlp_ratio": 4,
            "model_type": "llada",
            "multi_query_attention": null,
            "n_heads": self.heads,
            "n_kv_heads": self.kv_heads,
            "n_layers": self.layers,
            "pad_token_id": 126_081,
            "precision": "amp_bf16",
            "rms_norm_eps": 1e-5,
            "rope": true,
            "rope_full_precision": true,
            "rope_theta": self.constants().0,
            "scale_logits": false,
            "use_cache": false,
            "vocab_size": self.vocab,
            "weight_tying": self.tied,
        })
    }
}

/// The keys of both objects.
fn merge(a: Value, b: Value) -> Value {
    let (Value::Object(mut all), Value::Object(more)) = (a, b) else {
        unreachable!("both are written as objects above")
    };
    all.extend::<Map<String, Value>>(more);
    Value::Object(all)
}
