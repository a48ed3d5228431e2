#!/bin/bash
# 1,000 wrong passwords a second from ten addresses, while ten clients log in and send: their times, alone and beside the attack.
source "$(dirname "$0")/lib.sh"
source .ci/verify/fleet-lib.sh
need curl openssl

build
go build -o "$work/fleet" ./cmd/internal/verify/fleet
authority
free_ports smtp
cat >"$work/postroad.yaml" <<CONF
hostname: relay.sender.example
data_dir: $work/data
secrets: {dir: $work/secrets}
ingress:
  max_connections: 3000
  listeners:
    - {address: "127.0.0.1:$smtp", trusted_networks: [], auth: required, auth_in_clear: true, tls: starttls, cert: $work/tls/cert.pem, key: $work/tls/key.pem}
signer: {missing_key: pass}
delivery: {routes: [{domains: ["*"], via: "smtp:[127.0.0.1]:9", allow_private: true}]}
log: {format: json, level: error}
CONF
mkdir -p "$work/secrets/clients"
password=$(client_add host --class host)
[ ${#password} -ge 16 ] || die "postroad client add prints no password"
serve
"$work/fleet" bruteforce -address "127.0.0.1:$smtp" -ca "$work/tls/ca.pem" -user host -password "$password" "$@" || die "senders notice the attack"
stop_server
say "bruteforce: the attack got nowhere and senders did not notice it"
