#!/bin/sh
# usage: start.sh DIR
# Starts a Docker engine of its own below DIR (root only) and waits until it answers. Once more is harmless.
# Only one engine with a bridge can live on a machine: do not start it beside one that is in use.
set -eu
dir=${1:?a directory}
mkdir -p "$dir"
host=unix://$dir/docker.sock
answers() { docker -H "$host" version >/dev/null 2>&1; }

if answers; then echo "is up: $host"; exit 0; fi
if [ "$(id -u)" != 0 ]; then echo "start.sh needs root" >&2; exit 1; fi

# A pid file that a killed engine left behind keeps a new one from starting; a zombie counts as gone.
for file in "$dir/pid" "$dir/exec/containerd/containerd.pid"; do
  pid=$(cat "$file" 2>/dev/null || true)
  case "$(cut -d' ' -f2,3 "/proc/$pid/stat" 2>/dev/null || true)" in
    '(dockerd) '[!Z] | '(containerd) '[!Z]) ;;
    *) rm -f "$file" ;;
  esac
done

setsid dockerd -H "$host" --data-root "$dir/data" --exec-root "$dir/exec" --pidfile "$dir/pid" \
  >"$dir/log" 2>&1 </dev/null &
engine=$!
tries=0
until answers; do
  tries=$((tries + 1))
  if [ "$tries" -gt 150 ] || ! kill -0 "$engine" 2>/dev/null; then tail -20 "$dir/log" >&2; exit 1; fi
  sleep 0.2
done
echo "up: $host"
