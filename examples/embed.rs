//! A whole app around a graph artifact: sentence embeddings from an encoder, and how alike the sentences are.
//!
//! The encoder takes `input_ids` and `attention_mask`, both `i64[1, T]`, at one or more lengths T (and perhaps
//! `token_type_ids`), and gives the hidden states `f32[1, T, H]` of its tokens as its first output.
//!
//! ```text
//! cargo run --release -p dlx-examples --bin embed -- encoder.dlxa tokenizer.json "A fox runs." "The fox is running."
//! ```
#![allow(clippy::print_stdout, reason = "it is what an example does")]

use std::error::Error;

use dlx_runtime::graph::{GraphModel, Tensor, Tensors};
use dlx_runtime::text::Tokenizer;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [encoder, tokenizer, sentences @ ..] = &args[..] else {
        return Err("usage: embed ENCODER.dlxa TOKENIZER.json SENTENCE…".into());
    };
    let model = GraphModel::open(encoder)?;
    let tokenizer = Tokenizer::from_bytes(&std::fs::read(tokenizer)?)?;
    let embeddings =
        sentences.iter().map(|s| embed(&model, &tokenizer, s)).collect::<Result<Vec<_>, Box<dyn Error>>>()?;
    for (i, a) in embeddings.iter().enumerate() {
        for (j, b) in embeddings.iter().enumerate().skip(i + 1) {
            let alike: f32 = a.iter().zip(b).map(|(a, b)| a * b).sum();
            println!("{alike:.3}  {} / {}", sentences[i], sentences[j]);
        }
    }
    Ok(())
}

/// The mean of the hidden states of a sentence's tokens, at length 1.
fn embed(model: &GraphModel, tokenizer: &Tokenizer, sentence: &str) -> Result<Vec<f32>, Box<dyn Error>> {
    let ids = tokenizer.encode(sentence)?;
    // The shortest graph that holds the sentence; what it is longer is padding.
    let length =
        |e: &dlx_runtime::graph::Signature| e.inputs.first().and_then(|i| i.shape.last().copied()).unwrap_or(0);
    let entry = model.entries().iter().filter(|e| length(e) >= ids.len()).min_by_key(|e| length(e));
    let entry = entry.ok_or_else(|| format!("no graph holds the {} tokens of: {sentence}", ids.len()))?;
    let t = length(entry);
    let padded = |values: &mut dyn Iterator<Item = i64>| {
        let mut row: Vec<i64> = values.collect();
        row.resize(t, 0);
        Tensor::i64(&[1, t], row)
    };
    let inputs: Tensors = entry
        .inputs
        .iter()
        .map(|input| {
            let tensor = match input.name.as_str() {
                "input_ids" => padded(&mut ids.iter().map(|id| i64::from(*id))),
                "attention_mask" => padded(&mut ids.iter().map(|_| 1)),
                _ => padded(&mut std::iter::empty()),
            };
            (input.name.clone(), tensor)
        })
        .collect();
    let outputs = model.run(&inputs)?;
    let output = entry.outputs.first().ok_or("the graph has no output")?;
    let (hidden, width) = (outputs[&output.name].floats()?, output.shape.last().copied().unwrap_or(1));
    let mut mean = vec![0.0; width];
    for token in hidden.chunks(width).take(ids.len()) {
        mean.iter_mut().zip(token).for_each(|(m, v)| *m += v);
    }
    let norm = mean.iter().map(|v| v * v).sum::<f32>().sqrt().max(1e-12);
    Ok(mean.into_iter().map(|v| v / norm).collect())
}
