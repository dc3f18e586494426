#!/usr/bin/env bash
# transformers 4.52.4: the slow and the fast Qwen2 tokenizer read the same three files and disagree about an added token's id.
#
# added_tokens.json says 20 for a token behind a gap in the ids. The slow class keeps it; the fast class, made from the same
# files, appends the token to the vocabulary and numbers it by its place. A model whose embedding row is 20 then reads another
# row. dlxc keeps the id that the file gives, and refuses a tokenizer.json whose library disagrees.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check transformers==4.52.4 tokenizers==0.21.1
cd "$dir"
"$dir/venv/bin/python" - <<'PY'
import json, os, sys
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
import transformers
from transformers import Qwen2Tokenizer, Qwen2TokenizerFast

os.mkdir("model")
vocab = {letter: i for i, letter in enumerate("abcdefghij")}
json.dump(vocab, open("model/vocab.json", "w"))
open("model/merges.txt", "w").write("#version: 0.2\n")
json.dump({"<|endoftext|>": 10, "<|mask|>": 20}, open("model/added_tokens.json", "w"))
json.dump({"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>",
           "unk_token": "<|endoftext|>", "mask_token": "<|mask|>"}, open("model/tokenizer_config.json", "w"))
slow = Qwen2Tokenizer.from_pretrained("model").convert_tokens_to_ids("<|mask|>")
fast = Qwen2TokenizerFast.from_pretrained("model").convert_tokens_to_ids("<|mask|>")
print(f"transformers {transformers.__version__}: added_tokens.json says 20, the slow class {slow}, the fast class {fast}")
sys.exit(0 if (slow, fast) == (20, 11) else 1)
PY
