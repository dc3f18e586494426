//! A checkpoint whose answer is known by construction: after a token it says that token's successor.
//!
//! Embeddings are random signs; an SDAR moves the code of the position `distance` before to every masked position, by attention
//! whose keys are turned so that they meet their query exactly there. So a wrong rotary base, a wrong head or a missing end
//! token gives another answer.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// Ids of the special tokens; below are the bytes, above the words.
pub(crate) const END: usize = 256;
pub(crate) const TURN_END: usize = 258;
pub(crate) const MASK: usize = 259;
const SPECIAL: [&str; 4] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|MASK|>"];
const VOCAB: usize = 320;
const HIDDEN: usize = 160;
const CODE: usize = 128;
const HEAD: usize = 128;
const INNER: usize = 64;

/// What is said after what, and at which distance; the rotary base that the weights are made for.
pub(crate) struct Chain {
    pub(crate) successors: Vec<(usize, usize)>,
    pub(crate) words: Vec<&'static str>,
    pub(crate) distance: usize,
    pub(crate) theta: f64,
}

impl Chain {
    /// Words said one after the other, from a first token on, and then the end.
    pub(crate) fn words(first: usize, words: &[&'static str], then: &[usize]) -> Self {
        let ids: Vec<usize> = [first].into_iter().chain(260..260 + words.len()).chain(then.iter().copied()).collect();
        let successors = ids.windows(2).map(|pair| (pair[0], pair[1])).collect();
        Chain { successors, words: words.to_vec(), distance: 1, theta: 10_000.0 }
    }

    /// Saves it to `dir/chain`, with `config` laid over its config.json; a null removes a key.
    pub(crate) fn save(&self, dir: &Path, config: Value) -> PathBuf {
        let dir = dir.join("chain");
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("model.safetensors"), self.weights()).unwrap();
        let mut all = json!({
            "architectures": ["SDARForCausalLM"], "model_type": "sdar", "hidden_size": HIDDEN, "intermediate_size": INNER,
            "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": HEAD, "hidden_act": "silu",
            "rms_norm_eps": 1e-6, "rope_theta": self.theta, "max_position_embeddings": 512, "tie_word_embeddings": false,
            "vocab_size": VOCAB, "eos_token_id": [END], "torch_dtype": "float32", "block_size": 4, "mask_token_id": MASK,
            "attention_bias": false,
        });
        for (key, value) in config.as_object().unwrap() {
            all[key] = value.clone();
        }
        all.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        write(&dir, "config.json", &all);
        write(&dir, "tokenizer.json", &self.tokenizer());
        let template = "{% for m in messages %}{{ m.content }}{% endfor %}";
        let text = json!({"eos_token": SPECIAL[0], "mask_token": SPECIAL[3], "chat_template": template});
        write(&dir, "tokenizer_config.json", &text);
        dir
    }

    fn weights(&self) -> Vec<u8> {
        let mut state = 1u64;
        let mut sign = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            if state >> 63 == 0 { 1.0 } else { -1.0 }
        };
        let unit = 1.0 / (CODE as f32).sqrt();
        let codes: Vec<Vec<f32>> = (0..VOCAB).map(|_| (0..CODE).map(|_| sign() * unit).collect()).collect();
        let shift = HIDDEN - CODE;
        let (mut embed, mut head) = (vec![0f32; VOCAB * HIDDEN], vec![0f32; VOCAB * HIDDEN]);
        for (id, code) in codes.iter().enumerate() {
            embed[id * HIDDEN] = 1.0;
            if id != MASK {
                embed[id * HIDDEN + shift..][..CODE].copy_from_slice(code);
            }
        }
        for (from, to) in &self.successors {
            for (h, c) in head[to * HIDDEN + shift..][..CODE].iter_mut().zip(&codes[*from]) {
                *h += 4.0 * c;
            }
        }
        let (mut q, mut k, mut v, mut o) = (
            vec![0f32; HEAD * HIDDEN],
            vec![0f32; HEAD * HIDDEN],
            vec![0f32; HEAD * HIDDEN],
            vec![0f32; HIDDEN * HEAD],
        );
        for i in 0..HEAD / 2 {
            let angle = self.distance as f64 * self.theta.powf(-(i as f64) / (HEAD / 2) as f64);
            q[i * HIDDEN] = 1.0;
            k[i * HIDDEN] = angle.cos() as f32;
            k[(i + HEAD / 2) * HIDDEN] = angle.sin() as f32;
        }
        for i in 0..CODE {
            v[i * HIDDEN + shift + i] = 1.0;
            o[(shift + i) * HEAD + i] = 1.0;
        }
        let layer = |leaf: &str| format!("model.layers.0.{leaf}.weight");
        let ones = |n: usize| vec![1f32; n];
        let zeros = |n: usize| vec![0f32; n];
        tensors(&[
            ("model.embed_tokens.weight".into(), vec![VOCAB, HIDDEN], embed),
            ("model.norm.weight".into(), vec![HIDDEN], ones(HIDDEN)),
            ("lm_head.weight".into(), vec![VOCAB, HIDDEN], head),
            (layer("input_layernorm"), vec![HIDDEN], ones(HIDDEN)),
            (layer("post_attention_layernorm"), vec![HIDDEN], ones(HIDDEN)),
            (layer("self_attn.q_proj"), vec![HEAD, HIDDEN], q),
            (layer("self_attn.k_proj"), vec![HEAD, HIDDEN], k),
            (layer("self_attn.v_proj"), vec![HEAD, HIDDEN], v),
            (layer("self_attn.o_proj"), vec![HIDDEN, HEAD], o),
            (layer("self_attn.q_norm"), vec![HEAD], vec![16.0; HEAD]),
            (layer("self_attn.k_norm"), vec![HEAD], vec![16.0; HEAD]),
            (layer("mlp.gate_proj"), vec![INNER, HIDDEN], zeros(INNER * HIDDEN)),
            (layer("mlp.up_proj"), vec![INNER, HIDDEN], zeros(INNER * HIDDEN)),
            (layer("mlp.down_proj"), vec![HIDDEN, INNER], zeros(HIDDEN * INNER)),
        ])
    }

    fn tokenizer(&self) -> Value {
        let mut shifted = 0;
        let mut letter = |byte: u8| {
            let printable = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
            shifted += u32::from(!printable);
            char::from_u32(if printable { u32::from(byte) } else { 255 + shifted }).unwrap()
        };
        let alphabet: Vec<char> = (0..=255u8).map(&mut letter).collect();
        let mut vocab = serde_json::Map::new();
        for (byte, letter) in alphabet.iter().enumerate() {
            vocab.insert(letter.to_string(), byte.into());
        }
        for (i, token) in SPECIAL.iter().enumerate() {
            vocab.insert((*token).to_owned(), (END + i).into());
        }
        for (i, word) in self.words.iter().enumerate() {
            let text: String = word.bytes().map(|b| alphabet[usize::from(b)]).collect();
            vocab.insert(text, (260 + i).into());
        }
        let added: Vec<Value> = SPECIAL
            .iter()
            .enumerate()
            .map(|(i, token)| {
                json!({"id": END + i, "content": token, "special": true, "single_word": false, "lstrip": false,
                       "rstrip": false, "normalized": false})
            })
            .collect();
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
               "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes,
               "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                         "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []}})
    }
}

/// Writes a JSON file of a checkpoint.
pub(crate) fn write(dir: &Path, name: &str, value: &Value) {
    std::fs::write(dir.join(name), value.to_string()).unwrap();
}

/// A safetensors file of f32 tensors.
fn tensors(all: &[(String, Vec<usize>, Vec<f32>)]) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape, values) in all {
        let start = data.len();
        data.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        header.insert(name.clone(), json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]}));
    }
    let mut header = Value::Object(header).to_string();
    header += &" ".repeat(header.len().next_multiple_of(8) - header.len());
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
}
