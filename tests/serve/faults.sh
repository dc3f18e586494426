#!/usr/bin/env bash
# A server of the trained tiny model under load, left, starved, told to stop and killed: tests/serve/faults.sh [DLXC] [REQUESTS]
#
# Then random structured requests, sound and broken (fuzz.py), as many as the third argument says. Needs Python.
set -euo pipefail
cd "$(dirname "$0")/../.."
dlxc=${1:-target/release/dlxc}
requests=${2:-100000}
fuzzed=${3:-10000}
dir=$(mktemp -d)
trap 'kill "${server:-}" 2>/dev/null || true; rm -rf "$dir"' EXIT

"$dlxc" compile examples/models/sdar-tiny --quant int4 --max-seq 4096 -o "$dir/tiny.dlxa" >"$dir/log" 2>&1 ||
    { cat "$dir/log"; exit 1; }
python3 tests/serve/faults.py "$dlxc" "$dir/tiny.dlxa" "$requests"

python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet jsonschema==4.26.0
"$dlxc" serve "$dir/tiny.dlxa" --port 0 --threads 1 >"$dir/address" 2>"$dir/log" &
server=$!
until [ -s "$dir/address" ] && curl -fsS "$(head -1 "$dir/address")/health/ready" >/dev/null 2>&1; do
    kill -0 "$server"
    sleep 0.1
done
SECONDS=0
"$dir/venv/bin/python" tests/serve/fuzz.py "$(head -1 "$dir/address")" "$fuzzed"
echo "$fuzzed structured requests in $SECONDS s"
if grep -q 'a panic' "$dir/log"; then
    grep 'a panic' "$dir/log" | head -5
    exit 1
fi
