#!/bin/sh
# Makes secrets/postgres-password once, for production. The folder is closed to everybody else; the file in it is
# readable, because the database reads it as a user of its container.
set -eu
cd "$(dirname "$0")/.."
mkdir -p secrets
chmod 0700 secrets
if [ -e secrets/postgres-password ]; then
  echo "secrets/postgres-password is there already"
else
  umask 0333
  od -An -N24 -tx1 /dev/urandom | tr -d ' \n' >secrets/postgres-password
  echo "made secrets/postgres-password"
fi
