#!/usr/bin/env bash
# Makes the pages of compiler/tests/report.rs and opens them in Chromium: no errors, no requests, the keyboard works, and
# axe-core has no complaint, in light and dark, wide and narrow. Needs Node; installs the rest under target/.
#
#   tests/report/run.sh [PAGE.html …]     pages to open instead of those of the tests
#
# Screenshots are left in target/report.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=$PWD/target/report
mkdir -p "$out"
pages=("$@")
if [ ${#pages[@]} = 0 ]; then
    rm -f "$out"/*.html
    DLX_REPORT_DIR="$out" cargo test -p dlxc --test report
    pages=("$out"/{all,stages,artifact,answer,hostile}.html)
fi
. tests/browser.sh
NODE_PATH="$out/node_modules" CHROMIUM="$browser" OUT="$out" node tests/report/check.cjs "${pages[@]}"
