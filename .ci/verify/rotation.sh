#!/bin/bash
# All that is secret changes under load. 210 mails a second come in by TLS sessions with a password, are signed with keys from a real Vault and
# delivered; meanwhile the DKIM keys rotate twice, Vault is sealed for a third of the time, the signer is killed and another one starts, the
# client's password and the server's certificate are replaced. No session fails, no mail is lost, none arrives without good signatures of
# both algorithms, each verified at the moment of delivery against what the DNS said then.
#
#   rotation.sh           three minutes
#   rotation.sh 120s      shorter; it goes on until both rotations are through
#   rotation.sh 120s -rate 100 -least 90       further arguments go to the load
#
# The rate needs a disk that others leave alone; with TMPDIR=/dev/shm it needs none.
source "$(dirname "$0")/lib.sh"
. .ci/verify/dns-lib.sh
. .ci/verify/vault-lib.sh
. .ci/verify/fleet-lib.sh
need curl openssl knot-dnsutils
dns_need
duration=${1:-180s}
[ $# -gt 0 ] && shift
seconds=${duration%s}
case $seconds in
'' | *[!0-9]*) die "\"$duration\": want a duration in seconds, such as 180s" ;;
esac
[ "$seconds" -ge 90 ] || die "two rotations take 90 seconds at least"
sealed=$((seconds / 3))

build
go build -o "$work/rotation" ./cmd/internal/verify/rotation
free_ports smtp mail dns nats
authority
vault_start
vault_roles ingress signer delivery admin
vault_admin
cat >"$work/sender.example.zone" <<ZONE
\$ORIGIN sender.example.
\$TTL 2
@ SOA ns1 hostmaster 1 60 60 600 2
@ NS ns1
ns1 A 127.0.0.1
ZONE
knot_start 127.0.0.1 "$dns" sender.example "$work/sender.example.zone"

cat >"$work/postroad.yaml" <<CONF
hostname: queue.sender.example
domain: sender.example
data_dir: $work/data
roles: [queue, ops, delivery]
queue: {listen: "127.0.0.1:$nats"}
signer:
  rotation:
    resolvers: ["127.0.0.1:$dns"]
    name_server_port: $dns
    update_server: 127.0.0.1:$dns
    update_zone: sender.example
    update_key: $dns_key
    update_ttl: 2s
$(vault_settings delivery)
delivery:
  routes: [{domains: [box.example, sender.example], via: "smtp:[127.0.0.1]:$mail", allow_private: true}]
log: {format: json, level: warn}
CONF
cat >"$work/ingress.yaml" <<CONF
hostname: relay.sender.example
domain: sender.example
data_dir: $work/ingress
roles: [ingress]
queue: {urls: ["nats://127.0.0.1:$nats"]}
ingress:
  listeners:
    - {address: "127.0.0.1:$smtp", trusted_networks: [], auth: required, tls: starttls, certificates: [{secret: relay}]}
$(vault_settings ingress)
log: {format: json, level: warn}
CONF

# admin COMMAND… acts with the admin's token.
admin() { postroad --vault-token "$work/admin.token" "$@"; }

# rotate NUMBER publishes a new pair of keys, lets it sign, and retires the old one.
rotate() {
	timeout 180 "$work/postroad" -c "$work/postroad.yaml" --vault-token "$work/admin.token" dkim rotate sender.example --wait >"$work/rotate-$1.log" 2>&1
}

# process NAME CONFIGURATION starts a process.
process() {
	"$work/postroad" serve -c "$2" 2>>"$work/$1.log" &
	pids+=("$!")
}

# signer NAME starts a signer.
signer() {
	cat >"$work/$1.yaml" <<-CONF
		hostname: $1.sender.example
		domain: sender.example
		data_dir: $work/$1
		roles: [signer]
		queue: {urls: ["nats://127.0.0.1:$nats"]}
		$(vault_settings signer)
		log: {format: json}
	CONF
	process "$1" "$work/$1.yaml"
	signer_pid=$!
}

# certificate makes a certificate of the private authority and puts it where the ingress reads it.
certificate() {
	(
		cd "$work/tls"
		umask 077
		openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=relay.sender.example -keyout key.pem -out request.pem
		openssl x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out cert.pem \
			-extfile <(printf 'subjectAltName=DNS:relay.sender.example')
	) >"$work/openssl.log" 2>&1 || die "openssl makes no certificate"
	root kv put -mount=secret postroad/tls/relay certificate=@"$work/tls/cert.pem" private_key=@"$work/tls/key.pem" >"$work/tls.log" || die "vault kv put"
}

# password COMMAND… makes a password and gives it to the clients. An ingress that has just looked at the account looks again a second later.
password() {
	local text
	text=$(admin --json client "$@" 2>"$work/client.log" | sed -n 's/.*"password": *"\([^"]*\)".*/\1/p')
	[ -n "$text" ] || die "postroad client $1 prints no password"
	sleep 1
	(umask 077 && printf '%s\n' "$text" >"$work/password.part")
	mv "$work/password.part" "$work/password"
}

# selectors STATE are those of the keys in a state.
selectors() { admin dkim list sender.example | awk -v state="$1" '$5 == state {print $2}'; }

certificate
serve
admin dkim new sender.example >"$work/new.log" 2>&1 || die "dkim new"
rotate 0 || die "dkim rotate does not bring the first keys into force"
[ "$(selectors active | wc -l)" = 2 ] || die "not both keys are active"
signer signer-1
password add host --class host
process ingress "$work/ingress.yaml"
within 60 answers "$smtp"
within 60 grep -q 'key read' "$work/signer-1.log"

"$work/rotation" -address "127.0.0.1:$smtp" -ca "$work/tls/ca.pem" -user host -password-file "$work/password" -sink "127.0.0.1:$mail" \
	-dns "127.0.0.1:$dns" -domain sender.example -duration "$duration" -until "$work/changed" "$@" >"$work/load.log" 2>&1 &
load=$!
pids+=("$load")
begun=$SECONDS

# at SECOND waits until the load has run so long.
at() {
	while [ $((SECONDS - begun)) -lt "$1" ]; do
		kill -0 $load 2>/dev/null || die "the load has ended"
		sleep 0.2
	done
}
event() { say "$(printf '%4d' $((SECONDS - begun))) s: $*"; }
is_sealed() { [ "$(root status 2>/dev/null | awk '$1 == "Sealed" {print $2}')" = true ]; }

at 5
event "first rotation of the keys begins"
rotate 1 &
rotating=$!
pids+=("$rotating")
at 15
password passwd host --grace 30s
event "new password, the old one good for 30 s"
at 25
certificate
event "new certificate in Vault"
wait $rotating || die "the first rotation"
old=$(selectors retiring)
[ "$(wc -w <<<"$old")" = 2 ] || die "not both old keys are retiring: $old"
event "first rotation is through: $(selectors active | xargs) sign, $(xargs <<<"$old") do not"
# Until the signer has seen that a key is retiring it signs with the old one beside the new one.
has_stopped() { grep -q "key does not sign.*\"selector\":\"$1\",\"state\":\"retiring\"" "$work/signer-1.log"; }
is_unused() { admin dkim revoke sender.example "$1" --dry-run | grep -q 'with its signature: 0$'; }
for selector in $old; do
	within 60 has_stopped "$selector"
	within 60 is_unused "$selector"
	admin dkim revoke sender.example "$selector" --force >>"$work/revoke.log" 2>&1 || die "dkim revoke $selector"
done
event "their records are empty, their private halves destroyed"

at $((seconds * 65 / 180))
root operator seal >"$work/seal.log" 2>&1 || die "vault operator seal"
within 10 is_sealed
from=$SECONDS
event "Vault is sealed"
at $((from - begun + sealed))
is_sealed || die "Vault was not sealed all the time"
root operator unseal "$(sed -n 's/^Unseal Key: //p' "$work/vault.log")" >"$work/unseal.log" 2>&1 || die "vault operator unseal"
within 30 root kv get -mount=secret postroad/tls/relay
event "Vault is unsealed, after $((SECONDS - from)) s"
grep -q 'keys cannot be read, signing goes on' "$work/signer-1.log" || die "the signer did not notice that Vault was sealed"

event "second rotation of the keys begins"
rotate 2 &
rotating=$!
pids+=("$rotating")
at $((SECONDS - begun + 12))
kill -KILL "$signer_pid"
wait "$signer_pid" 2>/dev/null || true
event "the signer is killed"
signer signer-2
within 60 grep -q 'key read' "$work/signer-2.log"
event "another signer has read the keys"
wait $rotating || die "the second rotation"
event "second rotation is through: $(selectors active | xargs) sign, $(selectors retiring | xargs) do not"
touch "$work/changed"

wait $load || die "$(tail -n 1 "$work/load.log")"
sed 's/^/  /' "$work/load.log"
within 20 queue_is_empty
stop_server
say "rotation: $(sed -n 's/^load: //p' "$work/load.log")"
