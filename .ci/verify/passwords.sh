#!/bin/bash
# A password changes twice while 50 clients log in and send without pause. No session fails of a client that holds a valid password, the
# old one during its grace or the new one; an old one is refused after its grace. Nothing is restarted.
source "$(dirname "$0")/lib.sh"
source .ci/verify/fleet-lib.sh
need curl openssl

build
go build -o "$work/fleet" ./cmd/internal/verify/fleet
authority
free_ports smtp
grace=30s
cat >"$work/postroad.yaml" <<CONF
hostname: relay.sender.example
data_dir: $work/data
secrets: {dir: $work/secrets}
ingress:
  listeners:
    - {address: "127.0.0.1:$smtp", trusted_networks: [], auth: required, tls: starttls, cert: $work/tls/cert.pem, key: $work/tls/key.pem}
signer: {missing_key: pass}
delivery: {routes: [{domains: ["*"], via: "smtp:[127.0.0.1]:9", allow_private: true}]}
log: {format: json, level: warn}
CONF
mkdir -p "$work/secrets/clients"
password=$(client_add host --class host)
[ ${#password} -ge 16 ] || die "postroad client add prints no password"
serve
"$work/fleet" passwords -address "127.0.0.1:$smtp" -ca "$work/tls/ca.pem" -user host -password "$password" -grace $grace \
	-change "'$work/postroad' -c '$work/postroad.yaml' --json client passwd host --grace $grace | sed -n 's/.*\"password\": *\"\([^\"]*\)\".*/\1/p'" \
	"$@" || die "the change of passwords was noticed"
stop_server
say "passwords: changed twice under load, no session failed, old ones are refused after their grace"
