"""Hugging Face transformers: a whole forward of Qwen3 in bf16 with a KV cache, logits for all rows."""

from collections.abc import Callable

import numpy as np
import torch
from transformers import DynamicCache, Qwen3Config, Qwen3ForCausalLM

from shape import SHAPE


def load(threads: int) -> Callable[[int, int], Callable[[], np.ndarray]]:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=SHAPE.vocab,
        hidden_size=SHAPE.hidden,
        intermediate_size=SHAPE.mlp,
        num_hidden_layers=SHAPE.layers,
        num_attention_heads=SHAPE.q_heads,
        num_key_value_heads=SHAPE.kv_heads,
        head_dim=SHAPE.head_dim,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
        dtype=torch.bfloat16,
    )
    torch.set_default_dtype(torch.bfloat16)
    model = Qwen3ForCausalLM(config).eval()

    caches: dict[int, DynamicCache] = {}

    def forward(cache: DynamicCache, rows: int, logits_to_keep: int) -> torch.Tensor:
        ids = torch.randint(0, SHAPE.vocab, (1, rows))
        with torch.inference_mode():
            return model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=logits_to_keep).logits

    def prepare(rows: int, depth: int) -> Callable[[], np.ndarray]:
        cache = caches.get(depth)
        if cache is None:
            cache = caches[depth] = DynamicCache(config=config)
            if depth:
                forward(cache, depth, 1)

        def run() -> np.ndarray:
            # 0 keeps the logits of all rows.
            logits = forward(cache, rows, 0)
            cache.crop(-rows)
            if cache.get_seq_length() != depth:
                raise RuntimeError(f"the cache holds {cache.get_seq_length()} rows after a crop to {depth}")
            return logits[0, :, :64].float().numpy()

        return run

    return prepare
