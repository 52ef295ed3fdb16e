#!/bin/sh
# Like the usual image: a leading option means the server, root hands over to the server's user, and protected mode is
# off unless asked for, since other containers must get in.
set -e
server=$NAME-server
case "${1:-}" in '' | -* | *.conf) set -- "$server" "$@" ;; esac
if [ "$1" = "$server" ]; then
  case " $* " in *" --protected-mode "* | *".conf "*) ;; *) set -- "$@" --protected-mode no ;; esac
  if [ "$(id -u)" = 0 ]; then
    find . \! -user "$NAME" -exec chown "$NAME" '{}' +
    exec setpriv --reuid="$NAME" --regid="$NAME" --clear-groups "$@"
  fi
fi
exec "$@"
