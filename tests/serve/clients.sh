#!/usr/bin/env bash
# Official clients against a server of the trained tiny model: tests/serve/clients.sh [DLXC]
#
# Installs pinned clients from their registries into target/clients, runs them, unmodified, and prints a table of what they
# did. Fails if a case fails or something cannot be installed.
set -euo pipefail
cd "$(dirname "$0")/../.."
dlxc=${1:-target/release/dlxc}
dir=target/clients
mkdir -p "$dir"
python=$dir/venv/bin/python

[ -x "$python" ] || python3 -m venv "$dir/venv"
"$python" -m pip install --quiet --disable-pip-version-check openai==3.57.0 litellm==1.110.2 langchain-openai==1.7.4 \
    'pydantic-ai-slim[openai]==2.68.0' openai-agents==0.24.0
npm install --silent --no-fund --no-audit --prefix "$dir" \
    openai@7.59.0 ai@6.0.326 @ai-sdk/openai@3.0.141 @ai-sdk/openai-compatible@2.0.92 zod@4.6.7
cp tests/serve/*.mjs "$dir"

# The same weights once more, with a chat template that shows tools and calls as Qwen's do.
cp -r examples/models/sdar-tiny "$dir/tools"
"$python" - "$dir/tools/tokenizer_config.json" <<'PY'
import json, pathlib, sys
path = pathlib.Path(sys.argv[1])
config = json.loads(path.read_text())
config["chat_template"] = (
    "{%- if tools %}<|im_start|>system\nTools:{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}{%- for call in message.tool_calls or [] %}"
    "<tool_call>\n{\"name\": \"{{ call.function.name }}\", \"arguments\": {{ call.function.arguments | tojson }}}\n</tool_call>"
    "{% endfor %}<|im_end|>\n{% endfor %}{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
path.write_text(json.dumps(config))
PY
for model in tiny:examples/models/sdar-tiny tools:$dir/tools; do
    "$dlxc" compile "${model#*:}" --quant int4 --max-seq 16384 -o "$dir/${model%%:*}.dlxa" >"$dir/compile.log" 2>&1 ||
        { cat "$dir/compile.log"; exit 1; }
done
rm -r "$dir/tools"
echo secret >"$dir/keys"
exec "$python" tests/serve/clients.py "$dlxc" "$dir"
