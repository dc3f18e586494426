"""llama.cpp: a whole forward in Q4_0 with a KV cache, logits for all rows."""

from collections.abc import Callable
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

from shape import SHAPE, Shape

CONTEXT = 4096
MOST_ROWS = 512
KIND = gguf.GGMLQuantizationType.Q4_0
BLOCK_BYTES = 18


def random_q4_0(rng: np.random.Generator, outputs: int, inputs: int) -> np.ndarray:
    """Blocks of 32 weights as they lie in a file: a half as the scale, then 16 bytes of nibbles."""
    blocks = rng.integers(0, 256, (outputs, inputs // 32, BLOCK_BYTES), np.uint8)
    blocks[:, :, :2] = np.full(1, inputs**-0.5 / 4.6, np.float16).view(np.uint8)
    return blocks.reshape(outputs, -1)


def write(shape: Shape, path: Path) -> None:
    """A Qwen3 file without a tokenizer. The head is a matrix of its own, which lets llama.cpp repack it."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_block_count(shape.layers)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.mlp)
    writer.add_head_count(shape.q_heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_vocab_size(shape.vocab)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_tokenizer_model("no_vocab")

    def norm(name: str, width: int) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))

    def matrix(name: str, outputs: int, inputs: int) -> None:
        writer.add_tensor(f"{name}.weight", random_q4_0(rng, outputs, inputs), raw_dtype=KIND)

    matrix("token_embd", shape.vocab, shape.hidden)
    norm("output_norm", shape.hidden)
    matrix("output", shape.vocab, shape.hidden)
    names = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output"}
    for layer in range(shape.layers):
        norm(f"blk.{layer}.attn_norm", shape.hidden)
        norm(f"blk.{layer}.ffn_norm", shape.hidden)
        norm(f"blk.{layer}.attn_q_norm", shape.head_dim)
        norm(f"blk.{layer}.attn_k_norm", shape.head_dim)
        for name, inputs, outputs in shape.layer_linears():
            matrix(f"blk.{layer}.{names.get(name, f'ffn_{name}')}", outputs, inputs)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def load(models: Path, threads: int) -> Callable[[int, int], Callable[[], np.ndarray]]:
    path = models / "qwen3-q4_0.gguf"
    if not path.exists():
        part = path.with_suffix(".part")
        write(SHAPE, part)
        part.rename(path)
    llama_cpp.llama_backend_init()
    model_params = llama_cpp.llama_model_default_params()
    # Weights that stay in the file's mapping are not repacked for this processor.
    model_params.use_mmap = False
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_params)
    if not model:
        raise RuntimeError(f"llama.cpp cannot load {path}")
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = CONTEXT, MOST_ROWS, MOST_ROWS
    params.n_threads = params.n_threads_batch = threads
    context = llama_cpp.llama_init_from_model(model, params)
    memory = llama_cpp.llama_get_memory(context)
    batch = llama_cpp.llama_batch_init(MOST_ROWS, 0, 1)

    def decode(at: int, rows: int, logits: bool) -> None:
        batch.n_tokens = rows
        for i in range(rows):
            batch.token[i] = ((at + i) * 7919 + 17) % SHAPE.vocab
            batch.pos[i] = at + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = logits
        code = llama_cpp.llama_decode(context, batch)
        if code != 0:
            raise RuntimeError(f"llama_decode returned {code} for {rows} rows at {at}")

    def prepare(rows: int, depth: int) -> Callable[[], np.ndarray]:
        if rows > MOST_ROWS or depth + rows > CONTEXT:
            raise ValueError(f"llama.cpp was given room for {MOST_ROWS} rows and a context of {CONTEXT}")
        # What the cache holds depends on nothing but the position, so rows from before are kept.
        for at in range(llama_cpp.llama_memory_seq_pos_max(memory, 0) + 1, depth, MOST_ROWS):
            decode(at, min(MOST_ROWS, depth - at), False)

        def run() -> np.ndarray:
            llama_cpp.llama_memory_seq_rm(memory, 0, depth, -1)
            decode(depth, rows, True)
            logits = llama_cpp.llama_get_logits(context)
            return np.ctypeslib.as_array(logits, (rows, SHAPE.vocab))

        return run

    return prepare
