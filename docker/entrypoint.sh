#!/bin/sh
# as-appuser: runs a served part without privileges and without a way to gain any. Started as root, which is how
# development starts it so that `docker exec` is root, it first gives the folders that the engine made for the mounts to
# appuser.
set -eu
if [ "$(id -u)" = 0 ]; then
  for folder in /app/data /app/data/outputs /app/data/cache /app/data/results /var/cache/cosmos; do
    mkdir -p "$folder"
    if [ "$(stat -c %u "$folder")" = 0 ]; then chown appuser:appuser "$folder"; fi
  done
  HOME=/home/appuser exec setpriv --reuid=appuser --regid=appuser --init-groups --no-new-privs -- "$@"
fi
exec setpriv --no-new-privs -- "$@"
