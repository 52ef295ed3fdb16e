#!/usr/bin/env bash
# usage: get-restic.sh [DIR]
# A newer restic (one static binary), out of the package of a newer Debian, signatures checked; the machine's own
# package settings stay as they are. DIR is .tools/restic-0.19 of this checkout by default.
set -euo pipefail
target=${1:-$(cd "$(dirname "$0")/../.." && pwd)/.tools/restic-0.19}
if [ -x "$target/restic" ]; then echo "is there: $target/restic"; exit 0; fi
mkdir -p "$target"

# The archive that this machine is set up with.
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Codename: bookworm' | head -1)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/cache/archives/partial"
cd "$work"
for suite in forky sid; do  # whichever has it; each moves on in its own time
  rm -rf lists usr restic_*.deb
  mkdir -p lists/partial
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >sources.list
  apt=(apt-get -qq
    -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=/dev/null
    -o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null
    -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work/cache" -o APT::Sandbox::User=root)
  { "${apt[@]}" update && "${apt[@]}" download restic; } || continue
  dpkg-deb --fsys-tarfile restic_*.deb | tar -x ./usr/bin/restic
  if [[ "$(usr/bin/restic version)" == "restic 0.19."* ]]; then
    mv usr/bin/restic "$target/restic"
    echo "installed: $target/restic, from $suite"
    exit 0
  fi
done
echo "no suite of $mirror has restic 0.19, which the tests are written for" >&2
exit 1
