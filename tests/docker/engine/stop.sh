#!/bin/sh
# usage: stop.sh DIR
# Stops the engine that start.sh started below DIR, with its containers. Once more is harmless.
set -eu
dir=${1:?a directory}
pid=$(cat "$dir/pid" 2>/dev/null || true)
alive() {
  case "$(cut -d' ' -f2,3 "/proc/$pid/stat" 2>/dev/null || true)" in '(dockerd) '[!Z]) ;; *) return 1 ;; esac
}

# An engine leaves mounts behind: of the network namespace it lives in, and after a kill of containers' files. While they
# are there its folder cannot be removed.
unmount() {
  cut -d' ' -f5 /proc/self/mountinfo | grep "^$dir/" | sort -r | while read -r at; do
    umount "$at" 2>/dev/null || umount --lazy "$at" || true
  done
}

if [ -z "$pid" ] || ! alive; then unmount; echo "is down"; exit 0; fi
kill "$pid"
tries=0
while alive; do
  tries=$((tries + 1))
  if [ "$tries" -gt 300 ]; then echo "still up after 60 s" >&2; exit 1; fi
  sleep 0.2
done
unmount
echo "stopped"
