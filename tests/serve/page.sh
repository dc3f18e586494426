#!/usr/bin/env bash
# Opens the server's page in Chromium, before two served models: a chat with the keyboard alone, steps, gaps, metrics, keys,
# conversations that are kept; no errors, no requests to others, and axe-core has no complaint, in light and dark, wide and
# narrow. Needs Node; installs the rest under target/.
#
#   tests/serve/page.sh [DLXC]
#
# Screenshots are left in target/page.
set -euo pipefail
cd "$(dirname "$0")/../.."
dlxc=${1:-target/release/dlxc}
out=$PWD/target/page
mkdir -p "$out"
. tests/browser.sh

dir=$(mktemp -d)
servers=()
trap 'for pid in "${servers[@]}"; do kill "$pid" 2>/dev/null || true; done; wait; rm -rf "$dir"' EXIT
for model in sdar llada; do
    "$dlxc" compile "examples/models/$model-tiny" --quant int8 --max-seq 512 -o "$dir/$model.dlxa" >"$dir/log" 2>&1 ||
        { cat "$dir/log"; exit 1; }
done
echo secret >"$dir/keys"

serve() { # NAME ARGUMENT… – its address is then in $dir/NAME
    "$dlxc" serve "$dir/sdar.dlxa" "$dir/llada.dlxa" --port 0 --threads 1 "${@:2}" >"$dir/$1" 2>"$dir/$1.log" &
    servers+=($!)
    until [ -s "$dir/$1" ] && curl -fsS "$(head -1 "$dir/$1")/health/ready" >/dev/null 2>&1; do
        kill -0 $! || { cat "$dir/$1.log"; exit 1; }
        sleep 0.1
    done
}
serve open
serve locked --api-key-file "$dir/keys"
NODE_PATH="$out/node_modules" CHROMIUM="$browser" OUT="$out" \
    node tests/serve/page.cjs "$(head -1 "$dir/open")" "$(head -1 "$dir/locked")"
