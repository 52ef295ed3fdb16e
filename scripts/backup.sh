#!/bin/sh
# Back up the whole stack at one instant; options as in `cosmos backup --help`. Always makes the archive too.
export COSMOS_BACKUP__ARCHIVE="${COSMOS_BACKUP__ARCHIVE:-true}"
exec "$(dirname -- "$0")/cosmos" backup "$@"
