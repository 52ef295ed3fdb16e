#!/bin/sh
# usage: stop.sh DIR
# Stops the engine that start.sh started below DIR, with its containers. Once more is harmless.
set -eu
dir=${1:?a directory}
pid=$(cat "$dir/pid" 2>/dev/null || true)
alive() {
  case "$(cut -d' ' -f2,3 "/proc/$pid/stat" 2>/dev/null || true)" in '(dockerd) '[!Z]) ;; *) return 1 ;; esac
}

if [ -z "$pid" ] || ! alive; then echo "is down"; exit 0; fi
kill "$pid"
tries=0
while alive; do
  tries=$((tries + 1))
  if [ "$tries" -gt 300 ]; then echo "still up after 60 s" >&2; exit 1; fi
  sleep 0.2
done
echo "stopped"
