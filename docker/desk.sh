#!/bin/sh
# A researcher's desk: gets a token from the identity provider of his state and calls a gateway, his own state's or another.
#
#   desk.sh FR DE submit --zone FR -- hostname     as a French researcher, through DE's gateway
#   desk.sh FR FR token [operator]                 prints a token, for other clients
#   desk.sh FR DE ca                               prints the authority of DE's public face
#
# A real identity provider asks for a password first.
set -eu
[ $# -ge 3 ] || { sed -n '2,/^set /p' "$0" | sed '/^set /d; s/^# \{0,1\}//'; exit 2; }
home=$1 gateway=$2
shift 2
case $home$gateway in *[!A-Z]*) echo "desk.sh: states are FR, DE and FI" >&2; exit 2 ;; esac

lower() { echo "$1" | tr '[:upper:]' '[:lower:]'; }
base64url() { basenc --base64url --wrap=0 | tr -d '='; }

token() {
  role=$1 now=$(date +%s)
  header=$(printf '{"alg":"EdDSA","typ":"at+jwt","kid":"demo-1"}' | base64url)
  claims=$(printf '{"iss":"https://login.%s.entente.example","aud":"entente.example","sub":"%s.%s@demo","jti":"%s-%s","iat":%s,"nbf":%s,"exp":%s,"entitlements":["urn:geant:entente.example:group:%ss"],"eduperson_assurance":["https://refeds.org/assurance/IAP/medium"],"residency":"%s"}' \
    "$(lower "$home")" "$role" "$home" "$now" "$$" "$now" "$now" $((now + 3600)) "$role" "$home" | base64url)
  printf '%s.%s' "$header" "$claims" >/tmp/signed
  openssl pkeyutl -sign -rawin -inkey "/srv/logins/$home.pem" -in /tmp/signed -out /tmp/signature
  printf '%s.%s.%s\n' "$header" "$claims" "$(base64url </tmp/signature)"
}

case $1 in
  token) token "${2:-researcher}" ;;
  ca) cat "/srv/public/$gateway.pem" ;;
  *)
    (umask 077 && token "${ROLE:-researcher}" >/tmp/token)
    export ENTENTE_URL="https://gateway-$(lower "$gateway"):8443" ENTENTE_CA="/srv/public/$gateway.pem"
    export ENTENTE_TOKEN_FILE=/tmp/token
    exec entente "$@" ;;
esac
