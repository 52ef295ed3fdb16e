#!/bin/sh
# Restore FILE, or list the backups; options as in `cosmos restore --help`.
exec "$(dirname -- "$0")/cosmos" restore "$@"
