#!/bin/sh
# Builds the tag docker:cli from this machine's own docker client and Compose plugin, for machines without a registry.
# The files lie where the real image keeps them.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
plugin=
for folder in "$HOME/.docker" /usr/local/lib/docker /usr/local/libexec/docker /usr/lib/docker /usr/libexec/docker; do
  if [ -x "$folder/cli-plugins/docker-compose" ]; then plugin=$folder/cli-plugins/docker-compose; break; fi
done
[ -n "$plugin" ] || { echo "the Compose plugin is not installed here" >&2; exit 1; }
cp -L "$(command -v docker)" "$work/docker"
cp -L "$plugin" "$work/docker-compose"
cat >"$work/Dockerfile" <<'EOF'
FROM scratch
COPY docker /usr/local/bin/docker
COPY docker-compose /usr/local/libexec/docker/cli-plugins/docker-compose
CMD ["docker"]
EOF
DOCKER_BUILDKIT=0 docker build --quiet --tag docker:cli "$work"
