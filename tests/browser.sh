# Sourced by scripts that open pages in Chromium: finds or installs the browser as $browser, and into $out the pinned packages that
# drive it and look for what is not accessible. Needs Node.
browser=${CHROMIUM:-$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)}
if [ -z "$browser" ]; then
    sudo=$([ "$(id -u)" = 0 ] || command -v sudo || true)
    $sudo apt-get update -qq && $sudo apt-get install -y -qq chromium
    browser=$(command -v chromium)
fi
[ -d "$out/node_modules/axe-core" ] ||
    npm install --no-save --silent --prefix "$out" puppeteer-core@25.16.0 axe-core@4.14.1
