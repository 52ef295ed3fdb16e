#!/bin/sh
# Serves with certbot's certificate when there is one, with a self-signed one until then, and takes over a new one
# without a restart.
set -eu
tls=/tmp/tls live=/certificates/live/cosmos name=${COSMOS_DOMAIN:-localhost}
mkdir -p "$tls"

take() { # CERTIFICATE KEY; refused while certbot has replaced only one of the two
  [ "$(openssl x509 -noout -pubkey -in "$1")" = "$(openssl pkey -pubout -in "$2")" ] || return 1
  cp "$1" "$tls/new.pem"
  cp "$2" "$tls/new.key"
  mv "$tls/new.pem" "$tls/current.pem"
  mv "$tls/new.key" "$tls/current.key"
}

umask 077
openssl req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -days 3650 \
  -subj "/CN=$name" -addext "subjectAltName=DNS:$name" -keyout "$tls/self.key" -out "$tls/self.pem" 2>/dev/null
take "$live/fullchain.pem" "$live/privkey.pem" 2>/dev/null || take "$tls/self.pem" "$tls/self.key"

while sleep "${COSMOS_TLS_POLL_S:-30}"; do
  if [ -e "$live/fullchain.pem" ] && ! cmp -s "$live/fullchain.pem" "$tls/current.pem"; then
    if take "$live/fullchain.pem" "$live/privkey.pem"; then
      nginx -s reload
      echo "took over the certificate of $live"
    fi
  fi
done &

exec nginx -g 'daemon off;'
