#!/usr/bin/env bash
# usage: get-promtool.sh [DIR]
# Prometheus' own promtool, out of Debian's package, signatures checked; nothing is installed and no service is made.
# DIR is .tools/promtool of this checkout by default.
set -euo pipefail
target=${1:-$(cd "$(dirname "$0")/../.." && pwd)/.tools/promtool}
if [ -x "$target/promtool" ]; then echo "is there: $target/promtool"; exit 0; fi
mkdir -p "$target"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get -qq -o APT::Sandbox::User=root download prometheus || {
  apt-get -qq update
  apt-get -qq -o APT::Sandbox::User=root download prometheus
}
dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x ./usr/bin/promtool
mv usr/bin/promtool "$target/promtool"
echo "installed: $target/promtool"
