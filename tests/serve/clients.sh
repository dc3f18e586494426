#!/usr/bin/env bash
# Official clients against a server of the trained tiny model: tests/serve/clients.sh [DLXC]
#
# Installs pinned SDKs of OpenAI for Python and Node, and frameworks that use /v1/responses by default, into a temporary
# folder and runs chat, streams, errors, retries and cancellation with them, unmodified. What cannot be installed is said, and fails.
set -euo pipefail
cd "$(dirname "$0")/../.."
dlxc=${1:-target/release/dlxc}
dir=$(mktemp -d)
trap 'kill "${server:-}" 2>/dev/null || true; rm -rf "$dir"' EXIT

python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet openai==3.57.0 'pydantic-ai-slim[openai]==2.68.0' openai-agents==0.24.0
npm install --silent --no-fund --no-audit --prefix "$dir" openai@7.59.0 ai@6.0.326 @ai-sdk/openai@3.0.141
cp tests/serve/*.mjs "$dir"

"$dlxc" compile examples/models/sdar-tiny --quant int4 --max-seq 4096 -o "$dir/tiny.dlxa" 2>/dev/null
echo secret >"$dir/keys"
"$dlxc" serve "$dir/tiny.dlxa" --port 0 --sequences 1 --waiting 2 --api-key-file "$dir/keys" >"$dir/address" 2>"$dir/log" &
server=$!
until [ -s "$dir/address" ] && curl -fsS "$(head -1 "$dir/address")/health/ready" >/dev/null 2>&1; do
    kill -0 "$server"
    sleep 0.1
done
url=$(head -1 "$dir/address")

"$dir/venv/bin/python" tests/serve/client.py "$url"
node "$dir/client.mjs" "$url"
"$dir/venv/bin/python" tests/serve/frameworks.py "$url"
node "$dir/frameworks.mjs" "$url"
if grep -qE 'capital of France|secret' "$dir/log"; then
    echo "the log holds what clients wrote"
    exit 1
fi
kill -TERM "$server"
wait "$server"
echo "the server ended with status 0 on SIGTERM"
