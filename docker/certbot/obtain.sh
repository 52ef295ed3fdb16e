#!/bin/sh
# Gets the certificate of COSMOS_DOMAIN and keeps it fresh: certbot is asked twice a day and renews when a third of the
# lifetime is left. After a failure it waits an hour, which stays below the limits of Let's Encrypt.
set -eu
trap 'exit 0' TERM INT

pause() {
  sleep "$1" &
  wait $!
}

obtain() {
  certbot certonly --non-interactive --agree-tos --email "$COSMOS_ACME_EMAIL" \
    ${COSMOS_ACME_SERVER:+--server "$COSMOS_ACME_SERVER"} \
    --webroot --webroot-path /var/www/certbot --cert-name cosmos --domain "$COSMOS_DOMAIN" \
    --keep-until-expiring --renew-with-new-domains \
    --config-dir /certificates --work-dir /tmp/work --logs-dir /tmp/logs
}

if [ -z "${COSMOS_DOMAIN:-}" ] || [ -z "${COSMOS_ACME_EMAIL:-}" ]; then
  echo "COSMOS_DOMAIN and COSMOS_ACME_EMAIL are not set: nginx keeps its self-signed certificate"
  while :; do pause 86400; done
fi

while :; do
  if obtain; then pause 43200; else pause 3600; fi
done
