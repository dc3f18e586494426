#!/usr/bin/env bash
# Runs check.sh on this repository's tiny model: once as it is, and once with a regression planted in the model's configuration,
# as a converter's mistake would leave it. Fails unless the first is well and the second is found and named.
set -euo pipefail
cd "$(dirname "$0")/../.."
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
model=examples/models/sdar-tiny
export MAX_BYTES=2000000 MAX_SLOWER=3
examples/ci/check.sh "$model" "$dir/good" >"$dir/first.md" 2>/dev/null
examples/ci/check.sh "$model" "$dir/again" "$dir/good" >"$dir/same.md" 2>/dev/null
cat "$dir/same.md"
cp -r "$model" "$dir/sdar-tiny"
sed -i 's/"rms_norm_eps": *1e-0*6/"rms_norm_eps": 1e-05/' "$dir/sdar-tiny/config.json"
if cmp -s "$model/config.json" "$dir/sdar-tiny/config.json"; then
    echo "the regression was not planted" >&2
    exit 1
fi
if examples/ci/check.sh "$dir/sdar-tiny" "$dir/bad" "$dir/good" >"$dir/bad.md" 2>/dev/null; then
    echo "the regression was not found" >&2
    exit 1
fi
cat "$dir/bad.md"
grep -q 'from 00-import on' "$dir/bad.md"
grep -q 'rms_norm' "$dir/bad.md"
