#!/usr/bin/env bash
# Benchmark clients against a server of the trained tiny model: tests/serve/benchmarks.sh [DLXC] [CLIENT…]
#
# CLIENT is aiperf, guidellm or vllm; the first two if none is named. Each is installed, pinned, into a folder of its own under
# target/benchmarks (guidellm brings torch, 6 GB; vllm another one, and more), sends a few requests by chats, and must report
# all of them as successful. A model that is asked for a number of tokens may say special ones, which are no text, and
# aiperf counts an answer without text as failed: so the tiny model is held to `min_tokens` where a client can be told so.
set -euo pipefail
cd "$(dirname "$0")/../.."
dlxc=${1:-target/release/dlxc}
[ $# -gt 0 ] && shift
clients=${*:-aiperf guidellm}
dir=$PWD/target/benchmarks
model=$PWD/examples/models/sdar-tiny
# Without config.json, whose model type no released transformers knows.
tokenizer=$dir/tokenizer
mkdir -p "$tokenizer"
cp "$model"/tokenizer.json "$model"/tokenizer_config.json "$tokenizer"
trap 'kill "${server:-}" 2>/dev/null || true' EXIT

"$dlxc" compile "$model" --quant int4 --max-seq 2048 -o "$dir/tiny.dlxa" >"$dir/compile.log" 2>&1 || { cat "$dir/compile.log"; exit 1; }
"$dlxc" serve "$dir/tiny.dlxa" --port 0 >"$dir/address" 2>"$dir/log" &
server=$!
until [ -s "$dir/address" ] && curl -fsS "$(head -1 "$dir/address")/health/ready" >/dev/null 2>&1; do
    kill -0 "$server"
    sleep 0.1
done
url=$(head -1 "$dir/address")

installed() { # NAME PACKAGE… – in a folder of its own
    local name=$1
    shift
    [ -x "$dir/$name/bin/python" ] || python3 -m venv "$dir/$name"
    "$dir/$name/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
    rm -rf "$dir/out/$name"
    mkdir -p "$dir/out/$name"
}

aiperf() {
    installed aiperf aiperf==0.13.0
    "$dir/aiperf/bin/aiperf" profile --model tiny --url "$url" --endpoint-type chat --streaming --tokenizer "$tokenizer" \
        --request-count 16 --concurrency 4 --synthetic-input-tokens-mean 32 --output-tokens-mean 16 --extra-inputs min_tokens:16 \
        --use-server-token-count --per-chunk-usage --ui none --artifact-dir "$dir/out/aiperf" >"$dir/out/aiperf/said" 2>&1
    report aiperf out/aiperf/profile_export_aiperf.json '
said["request_count"]["avg"], said.get("error_request_count", {}).get("avg", 0), said["output_token_throughput"]["avg"]'
}

guidellm() {
    installed guidellm guidellm==0.8.1
    "$dir/guidellm/bin/guidellm" run --backend "kind=openai_http,target=$url,model=tiny,extras.body={\"min_tokens\":16}" \
        --tokenizer "kind=huggingface_auto,model=$tokenizer" --profile kind=concurrent,streams=4 \
        --constraint kind=max_requests,count=16 --data kind=synthetic_text,prompt_tokens=32,output_tokens=16 \
        --output "kind=json,path=$dir/out/guidellm/benchmarks.json" --disable-console >"$dir/out/guidellm/said" 2>&1
    report guidellm out/guidellm/benchmarks.json '
(lambda m: (m["request_totals"]["successful"], m["request_totals"]["errored"] + m["request_totals"]["incomplete"],
m["output_tokens_per_second"]["successful"]["mean"]))(said["benchmarks"][0]["metrics"])'
}

vllm() {
    installed vllm vllm==0.33.0
    "$dir/vllm/bin/vllm" bench serve --backend openai-chat --base-url "$url" --endpoint /v1/chat/completions --model tiny \
        --tokenizer "$tokenizer" --dataset-name random --random-input-len 32 --random-output-len 16 --num-prompts 16 \
        --max-concurrency 4 --extra-body '{"min_tokens": 16}' --save-result --result-dir "$dir/out/vllm" --result-filename said.json \
        >"$dir/out/vllm/said" 2>&1
    report vllm out/vllm/said.json 'said["completed"], said.get("failed", 16 - said["completed"]), said["output_throughput"]'
}

report() { # NAME FILE EXPRESSION – of (successful, failed, tokens per second)
    "$dir/$1/bin/python" - "$1" "$dir/$2" "$3" <<'PY'
import importlib.metadata, json, sys
name, path, expression = sys.argv[1:]
said = json.load(open(path))
good, bad, speed = eval(expression.strip().replace("\n", " "))
print(f"{name} {importlib.metadata.version(name)}: {good:.0f} requests succeeded, {bad:.0f} failed, {speed:.1f} output tokens/s")
sys.exit(0 if good == 16 and not bad else 1)
PY
}

failed=0
for client in $clients; do
    # Not `client || …`: that would turn `set -e` off inside.
    set +e
    (set -e; "$client")
    status=$?
    set -e
    if [ $status != 0 ]; then
        failed=1
        echo "$client failed: $(tail -5 "$dir/out/$client/said" 2>/dev/null)"
    fi
done
exit $failed
