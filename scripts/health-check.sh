#!/bin/sh
# Check services, database, cache, disk and backups; options as in `cosmos health --help`.
exec "$(dirname -- "$0")/cosmos" health "$@"
