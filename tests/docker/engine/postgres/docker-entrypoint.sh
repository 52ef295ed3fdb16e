#!/usr/bin/env bash
# Behaves like the official image for: POSTGRES_USER/_PASSWORD/_DB (and *_FILE),
# POSTGRES_INITDB_ARGS, POSTGRES_HOST_AUTH_METHOD, PGDATA, /docker-entrypoint-initdb.d
set -Eeo pipefail
[ "${1:0:1}" = - ] && set -- postgres "$@"
case " $* " in *" -V "*|*" --version "*|*" --help "*|*" -C "*) exec "$@";; esac
if [ "$1" = postgres ] && [ "$(id -u)" = 0 ]; then
  mkdir -p "$PGDATA" /var/run/postgresql
  find "$PGDATA" /var/run/postgresql \! -user postgres -exec chown postgres '{}' +
  chmod 700 "$PGDATA"; chmod 3777 /var/run/postgresql
  exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
fi
fromfile() { local f=$1_FILE; if [ -n "${!f:-}" ]; then printf -v "$1" %s "$(<"${!f}")"; export "$1"; fi; }
if [ "$1" = postgres ] && [ ! -s "$PGDATA/PG_VERSION" ]; then
  for v in POSTGRES_PASSWORD POSTGRES_USER POSTGRES_DB POSTGRES_INITDB_ARGS; do fromfile $v; done
  : "${POSTGRES_USER:=postgres}" "${POSTGRES_DB:=$POSTGRES_USER}"
  if [ -z "${POSTGRES_PASSWORD:-}" ] && [ "${POSTGRES_HOST_AUTH_METHOD:-}" != trust ]; then
    echo 'Error: Database is uninitialized and superuser password is not specified.' >&2; exit 1
  fi
  eval "initdb --username=\"\$POSTGRES_USER\" --pwfile=<(printf '%s\n' \"\${POSTGRES_PASSWORD:-x}\") ${POSTGRES_INITDB_ARGS:-}"
  : "${POSTGRES_HOST_AUTH_METHOD:=$(postgres -C password_encryption)}"
  printf '\nhost all all all %s\n' "$POSTGRES_HOST_AUTH_METHOD" >>"$PGDATA/pg_hba.conf"
  export PGPASSWORD="${PGPASSWORD:-${POSTGRES_PASSWORD:-}}" PGHOST= PGHOSTADDR=
  shift; pg_ctl -D "$PGDATA" -o "$(printf '%q ' "$@" -c listen_addresses='' -p 5432)" -w start; set -- postgres "$@"
  q=(psql -v ON_ERROR_STOP=1 --no-psqlrc --username "$POSTGRES_USER" --no-password)
  [ "$POSTGRES_DB" = postgres ] || "${q[@]}" --dbname postgres --set db="$POSTGRES_DB" <<<'CREATE DATABASE :"db";'
  q+=(--dbname "$POSTGRES_DB")
  for f in /docker-entrypoint-initdb.d/*; do
    case $f in
      *.sh) if [ -x "$f" ]; then "$f"; else . "$f"; fi ;;
      *.sql) "${q[@]}" -f "$f" ;;
      *.sql.gz) gunzip -c "$f" | "${q[@]}" ;;
    esac
  done
  pg_ctl -D "$PGDATA" -m fast -w stop; unset PGPASSWORD PGHOST PGHOSTADDR
  echo 'PostgreSQL init process complete; ready for start up.'
fi
exec "$@"
