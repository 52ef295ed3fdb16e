#!/bin/sh
# Back up the whole stack at one instant; options as in `cosmos backup --help`.
exec "$(dirname -- "$0")/cosmos" backup "$@"
