#!/usr/bin/env bash
# usage: plugins.sh [DIR]
# Compose v2 and buildx as plugins of the docker client, out of the packages of a newer Debian, signatures checked; the
# machine's own package settings stay as they are. DIR is ~/.docker/cli-plugins by default.
set -euo pipefail
target=${1:-$HOME/.docker/cli-plugins}
mkdir -p "$target"
if [ -x "$target/docker-compose" ] && [ -x "$target/docker-buildx" ]; then echo "is there: $target"; exit 0; fi

# The archive that this machine is set up with.
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Codename: bookworm' | head -1)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" >"$work/sources.list"
apt=(apt-get -qq
  -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=/dev/null
  -o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null
  -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work/cache" -o APT::Sandbox::User=root)
"${apt[@]}" update
cd "$work"
"${apt[@]}" download docker-compose docker-buildx
for package in "$work"/*.deb; do
  dpkg-deb --fsys-tarfile "$package" |
    tar -x -C "$target" --wildcards './usr/libexec/docker/cli-plugins/*' --strip-components=5
done
echo "installed: $target"
