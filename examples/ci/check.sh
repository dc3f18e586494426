#!/usr/bin/env bash
# What a CI job does with a model: compiles it, holds every pass to what it says, compares the dumps with those of the last good
# build, and keeps to a budget of bytes and of time. Markdown for the job's summary goes to stdout, all else to stderr.
#
#   check.sh MODEL OUT [GOOD]      GOOD is the OUT of the last good build
#
#   DLXC=dlxc                      the program
#   DLXC_FLAGS="--quant int4"      how to compile
#   MAX_BYTES=2000000              largest artifact; no limit if not set
#   MAX_SLOWER=1.2                 largest time of a step over that of GOOD's artifact, measured here and now; not measured
#                                  if not set
#
# Exit status: 0 all is well, 1 something is not; the summary says what. OUT then holds dumps, verify.json and the artifact.
set -euo pipefail
model=$1 out=$2 good=${3:-}
dlxc=${DLXC:-dlxc}
failed=0
mkdir -p "$out"
rm -rf "$out/dumps"

echo "## $(basename "$model")"
echo
# shellcheck disable=SC2086 # flags are words
if $dlxc compile "$model" -o "$out/model.dlxa" ${DLXC_FLAGS:-} --dump "$out/dumps" --verify-each --json >"$out/verify.json" 2>"$out/compile.log"; then
    python3 - "$out/verify.json" <<'PY'
import json, sys
report = json.load(open(sys.argv[1]))
passes = [p for target in report["verify"] for p in target["passes"]]
compared = sum(p["comparison"]["compared"] for p in passes)
worst = max(passes, key=lambda p: p["comparison"]["error"] / p["limit"] if p["limit"] else 0)
print(f"{len(passes)} passes keep what they say, {compared} results compared; nearest to its limit:",
      f"`{worst['pass'].split('{')[0]}`, {worst['comparison']['error']:.1e} of {worst['limit']:.1e}.")
PY
else
    failed=1
    echo "**The compile failed.**"
    echo '```'
    cat "$out/compile.log"
    echo '```'
fi
echo
cat "$out/compile.log" >&2

if [ -n "$good" ] && [ -d "$out/dumps" ]; then
    $dlxc diff "$good/dumps" "$out/dumps" --markdown 2>/dev/null || failed=1
    echo
fi

if [ "$failed" = 0 ] && [ -n "${MAX_BYTES:-}" ]; then
    bytes=$(wc -c <"$out/model.dlxa")
    echo "Size: $bytes of $MAX_BYTES bytes."
    [ "$bytes" -le "$MAX_BYTES" ] || { failed=1; echo "**Too large.**"; }
fi

step() { # ARTIFACT – milliseconds of its smallest step
    $dlxc bench "$1" --rows 4 --seconds 1 --threads 1 --json 2>/dev/null |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["lines"][0]["step_ms"]["fastest"])'
}
if [ -n "$good" ] && [ -n "${MAX_SLOWER:-}" ] && [ -f "$out/model.dlxa" ]; then
    # In turn, so that a busy machine slows both; the fastest run of each counts.
    python3 - "$MAX_SLOWER" $(for _ in 1 2 3; do step "$good/model.dlxa"; step "$out/model.dlxa"; done) <<'PY' || failed=1
import sys
limit, times = float(sys.argv[1]), [float(t) for t in sys.argv[2:]]
before, now = min(times[::2]), min(times[1::2])
print(f"A step takes {now:.2f} ms, and took {before:.2f}: {now / before:.2f} of at most {limit:.2f}.")
sys.exit(now > limit * before)
PY
fi
exit "$failed"
