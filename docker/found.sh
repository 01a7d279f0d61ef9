#!/bin/sh
# Founds the federation of docker-compose.yml, as docs/operating.md has it; run again, it renews the gateways' certificates.
#
#   /srv/FR/authority  FR's authority, which its gateway never sees      /srv/logins  the identity providers' keys
#   /srv/FR/gateway    what FR's gateway is given                        /srv/public  what everybody may know
#
# In a real federation the three authorities are three machines, and people carry bundles and the genesis between them.
set -eu
umask 077
STATES="FR DE FI"
FEDERATION=entente.example
SHARE=/usr/share/entente

lower() { echo "$1" | tr '[:upper:]' '[:lower:]'; }
say() { echo "founding: $*"; }
base64url() { basenc --base64url --wrap=0 | tr -d '='; }

# What is moved into place is whole, so that a founding that was broken off goes on where it was.
authority() {
  state=$1 folder=/srv/$1/authority
  [ ! -e "$folder/authority" ] || return 0
  say "the authority of $state"
  rm -rf "$folder/new"
  entente certs init "$folder/new" --federation "$FEDERATION" --state "$state"
  mv "$folder/new" "$folder/authority"
}

gateway() {
  state=$1 name=$(lower "$1")-1
  entente certs gateway "/srv/$state/authority/authority" --name "$name" \
    --host "gateway-$(lower "$state")" --host localhost --host 127.0.0.1 --out "/srv/$state/gateway/$name"
}

# Stands for the state's identity provider: a key, and its key set.
login() {
  state=$1 key=/srv/logins/$1.pem
  [ -s "$key" ] || { openssl genpkey -algorithm ed25519 -out "$key.new" && mv "$key.new" "$key"; }
  x=$(openssl pkey -in "$key" -pubout -outform DER | tail -c 32 | base64url)
  printf '{"keys":[{"kty":"OKP","crv":"Ed25519","use":"sig","alg":"EdDSA","kid":"demo-1","x":"%s"}]}' "$x" >/tmp/jwks.json
  entente certs issuer "/srv/$state/authority/authority" \
    --issuer "https://login.$(lower "$state").$FEDERATION" --jwks /tmp/jwks.json \
    --role "researcher=urn:geant:$FEDERATION:group:researchers" \
    --role "operator=urn:geant:$FEDERATION:group:operators" \
    --role "agency=urn:geant:$FEDERATION:group:agencies" \
    --assurance-max high --clearance dual-use
}

found() {
  for state in $STATES; do
    authority "$state"
    gateway "$state"
    login "$state"
    # A founding state's bundle is its first.
    [ -e "/srv/$state/authority/authority/bundle.json" ] || entente certs bundle "/srv/$state/authority/authority"
  done
  say "the genesis"
  bundle() { echo "/srv/$1/authority/authority/bundle.json"; }
  member() { echo "$1/$(lower "$1")-1,node=$2,peer=gateway-$(lower "$1"):7443,api=https://gateway-$(lower "$1"):8443"; }
  entente certs genesis --bundle "$(bundle FR)" --bundle "$(bundle DE)" --bundle "$(bundle FI)" \
    --gateway "$(member FR 1)" --gateway "$(member DE 2)" --gateway "$(member FI 3)" --out /srv/public/new.json
  for state in $STATES; do entente certs sign "/srv/$state/authority/authority" /srv/public/new.json; done
  entente certs show /srv/public/new.json
  mv /srv/public/new.json /srv/public/genesis.json
}

# To each gateway its own, and what everybody may know. The configuration and the rules are copied each time, so that one
# may change them.
hand_over() {
  state=$1 to=/srv/$1/gateway lower=$(lower "$1")
  cp "/srv/$state/authority/authority/bundle.json" "/srv/$state/authority/authority/ca.pem" /srv/public/genesis.json "$to"
  cp "$SHARE/$lower.toml" "$to/gateway.toml"
  cp "$SHARE/$lower.cedar" "$to/policy.cedar"
  cp "/srv/$state/authority/authority/ca.pem" "/srv/public/$state.pem"
}

if [ -e /srv/public/genesis.json ]; then
  say "it is there; the gateways get new certificates"
  for state in $STATES; do gateway "$state"; done
else
  found
fi
for state in $STATES; do hand_over "$state"; done
cp "$SHARE/fr-accounts.toml" /srv/FR/gateway/accounts.toml
say "done"
