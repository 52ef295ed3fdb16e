#!/usr/bin/env bash
# usage: images.sh [--force]
# Builds stand-ins for the images that the tests use, out of Debian's packages and under the usual tags, on the engine
# of DOCKER_HOST: for machines that reach no registry. Tags that are there already are left alone, so that real images
# are used where somebody has pulled them. They are for tests only. Needs root, apt and mmdebstrap.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
force=${1:-}
export DOCKER_BUILDKIT=0 # the classic builder is enough, and needs no plugin
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Codename: bookworm' | head -1)
memory=/tmp
if [ -w /dev/shm ]; then memory=/dev/shm; fi # unpacking in memory is three times as fast

there() { [ "$force" != --force ] && docker image inspect "$1" >/dev/null 2>&1; }
say() { printf '%4ds  %s\n' "$SECONDS" "$*"; }

base() { # SUITE TAG MMDEBSTRAP-OPTION...
  local suite=$1 tag=$2
  shift 2
  if there "$tag"; then return; fi
  # Without manuals and package caches; excluding paths while unpacking would take longer.
  cat >"slim-$suite" <<'SLIM'
#!/bin/sh
set -e
rm -rf "$1"/usr/share/man/* "$1"/usr/share/info/* "$1"/usr/share/locale/* "$1"/usr/share/doc/* "$1"/var/cache/apt/*.bin
printf '%s\n' force-unsafe-io 'path-exclude=/usr/share/man/*' 'path-exclude=/usr/share/info/*' \
  'path-exclude=/usr/share/locale/*' 'path-exclude=/usr/share/doc/*' >"$1/etc/dpkg/dpkg.cfg.d/slim"
printf '%s\n' 'Acquire::Languages "none";' 'Dir::Cache::pkgcache ""; Dir::Cache::srcpkgcache "";' \
  'DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb"; };' >"$1/etc/apt/apt.conf.d/slim"
SLIM
  chmod +x "slim-$suite"
  TMPDIR=$memory mmdebstrap --quiet --variant=apt --components=main "$@" --customize-hook="$PWD/slim-$suite" \
    "$suite" - "${mirror%/}" 2>"$suite.log" |
    docker import -c 'CMD ["bash"]' -c 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' - \
      "$tag" >/dev/null || { cat "$suite.log" >&2; return 1; }
  say "$tag"
}

build() { # TAG FOLDER [BUILD-ARG]...
  local tag=$1 folder=$2 arguments=()
  shift 2
  if there "$tag"; then return; fi
  for argument in "$@"; do arguments+=(--build-arg "$argument"); done
  docker build --network host --force-rm --quiet "${arguments[@]}" --tag "$tag" "$folder" >"build-${tag//[:\/]/-}.log" 2>&1 ||
    { cat "build-${tag//[:\/]/-}.log" >&2; return 1; }
  say "$tag"
}

busybox() {
  if there busybox:1; then return; fi
  mkdir busybox
  (
    cd busybox
    apt-get -qq -o APT::Sandbox::User=root download busybox-static
    dpkg-deb -x busybox-static_*.deb unpacked
    mkdir -p root/bin root/tmp root/etc root/root
    cp unpacked/bin/busybox root/bin/ 2>/dev/null || cp unpacked/usr/bin/busybox root/bin/
    for applet in $(root/bin/busybox --list); do
      if [ "$applet" != busybox ]; then ln -sf busybox "root/bin/$applet"; fi
    done
    echo 'root:x:0:0:root:/root:/bin/sh' >root/etc/passwd
    echo 'root:x:0:' >root/etc/group
    chmod 1777 root/tmp
    tar -C root -c . | docker import -c 'CMD ["sh"]' -c 'ENV PATH=/bin' - busybox:1 >/dev/null
  )
  for tag in alpine:3 alpine:latest; do there "$tag" || docker tag busybox:1 "$tag"; done # for its sh and tar
  say busybox:1
}

bookworm() {
  base bookworm debian:bookworm-slim --include=usr-is-merged --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr
  cp -r "$here/python" python
  # What this machine trusts, so that `pip install` works in builds wherever it works outside of them.
  cp "${CA_BUNDLE:-/etc/ssl/certs/ca-certificates.crt}" python/authorities.crt
  build python:3.11-slim python
  build postgres:15 "$here/postgres" BASE=debian:bookworm-slim MAJOR=15
  build redis:7 "$here/redis" BASE=debian:bookworm-slim NAME=redis
  build nginx:1 "$here/nginx"
}

trixie() {
  base trixie debian:trixie-slim --include=passwd
  build postgres:17 "$here/postgres" BASE=debian:trixie-slim MAJOR=17
  build redis:8 "$here/redis" BASE=debian:trixie-slim NAME=redis
  build valkey/valkey:8 "$here/redis" BASE=debian:trixie-slim NAME=valkey
}

busybox
trixie &
other=$!
bookworm
wait "$other"
there docker:cli || sh "$here/docker-cli/build.sh"
say "all there"
