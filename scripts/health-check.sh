#!/bin/sh
# Check services, addresses, stores, certificates, disks and backups; options as in `cosmos health --help`.
exec "$(dirname -- "$0")/cosmos" health "$@"
