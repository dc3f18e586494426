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
browser=${CHROMIUM:-$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)}
if [ -z "$browser" ]; then
    sudo=$([ "$(id -u)" = 0 ] || command -v sudo || true)
    $sudo apt-get update -qq && $sudo apt-get install -y -qq chromium
    browser=$(command -v chromium)
fi
[ -d "$out/node_modules/axe-core" ] ||
    npm install --no-save --silent --prefix "$out" puppeteer-core@25.16.0 axe-core@4.14.1
NODE_PATH="$out/node_modules" CHROMIUM="$browser" OUT="$out" node tests/report/check.cjs "${pages[@]}"
