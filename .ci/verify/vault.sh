#!/bin/bash
# DKIM keys in a real Vault, from their making to mail that two verifiers find good. A fresh Vault is set up by deploy/vault; the signer logs in
# by AppRole; `postroad dkim new` makes keys there, `dns` prints their records, `check` and `activate` refuse until Knot has them; then swaks
# sends a message, which Debian's Postfix puts into a mailbox. The second part moves a key that never leaves Vault (transit).
source "$(dirname "$0")/lib.sh"
. .ci/verify/dns-lib.sh
. .ci/verify/dkim-lib.sh
need curl swaks postfix openssl knot-dnsutils
dns_need
dkim_need
. .ci/verify/vault-lib.sh

build
free_ports smtp mail dns nats
vault_start
vault_roles ingress signer admin
vault_admin
say "Vault $(vault version | cut -d' ' -f2) is set up: $(grep -c 'role id' "$work/roles.log") roles"

cat >"$work/sender.example.zone" <<ZONE
\$ORIGIN sender.example.
\$TTL 2
@ SOA ns1 hostmaster 1 60 60 600 2
@ NS ns1
ns1 A 127.0.0.1
ZONE
knot_start 127.0.0.1 "$dns" sender.example "$work/sender.example.zone"
postfix_start "$mail"

cat >"$work/postroad.yaml" <<CONF
hostname: relay.sender.example
domain: sender.example
data_dir: $work/data
roles: [queue, ops, delivery, ingress]
queue: {listen: "127.0.0.1:$nats"}
ingress: {listeners: [{address: "127.0.0.1:$smtp"}]}
signer:
  rotation: {resolvers: ["127.0.0.1:$dns"], name_server_port: $dns}
$(vault_settings ingress)
delivery:
  routes: [{domains: [box.example, sender.example], via: "smtp:[127.0.0.1]:$mail", allow_private: true}]
log: {format: json}
CONF
cat >"$work/signer.yaml" <<CONF
hostname: signer.sender.example
domain: sender.example
data_dir: $work/signer
roles: [signer]
queue: {urls: ["nats://127.0.0.1:$nats"]}
$(vault_settings signer)
log: {format: json}
CONF
serve
"$work/postroad" serve -c "$work/signer.yaml" 2>>"$work/signer.log" &
pids+=("$!")

# dkim COMMAND… acts with the admin's token.
dkim() { postroad --vault-token "$work/admin.token" dkim "$@"; }

dkim new sender.example >"$work/new.log" 2>&1 || die "dkim new"
say "postroad dkim new sender.example:"
sed 's/^/  /' "$work/new.log" | cut -c1-120
rsa=$(sed -n 's/^made key \(rsa-[^ ]*\) .*/\1/p' "$work/new.log")
ed=$(sed -n 's/^made key \(ed25519-[^ ]*\) .*/\1/p' "$work/new.log")
[ -n "$rsa" ] && [ -n "$ed" ] || die "dkim new made no pair"
[ "$(root kv get -mount=secret -field=private_key "postroad/dkim/sender.example/$rsa" | openssl pkey -noout -text 2>/dev/null | sed -n 's/.*(\([0-9]*\) bit.*/\1/p')" = 2048 ] ||
	die "the key in Vault has no 2048 bits"

dkim check sender.example >"$work/check-early.log" 2>&1 && die "dkim check is content with a DNS that has nothing"
dkim activate sender.example "$rsa" >"$work/activate-early.log" 2>&1 && die "dkim activate lets a key sign whose record is nowhere"
say "before its record is published: $(tail -n 1 "$work/activate-early.log" | cut -c1-150)"

dns_publish sender.example "$dns"
checked() { dkim check sender.example >"$work/check.log" 2>&1; }
within 30 checked
say "postroad dkim check sender.example:"
sed 's/^/  /' "$work/check.log"
activated() { dkim activate sender.example "$1" >"$work/activate.log" 2>&1; }
within 30 activated "$rsa"
within 30 activated "$ed"
dkim list >"$work/keys.log"
[ "$(grep -c ' active ' "$work/keys.log")" = 2 ] || die "not both keys are active"
say "postroad dkim list:"
sed 's/^/  /' "$work/keys.log"

dkim_dns_records "$dns" sender.example "$rsa" "$ed" >"$work/records"

# send SUBJECT
send() {
	timeout 180 swaks --timeout 120 --server "127.0.0.1:$smtp" --from rider@sender.example --to you@box.example --header "Subject: $1" \
		--body 'Horses are changed at every station.' >"$work/swaks.log" 2>&1 || die "swaks: the message was not accepted"
}
sleep 60 # until every signer knows
send "keys in Vault"
within 420 mails "$work/box/you" 1
say "signatures of a message, by keys that the signer read from Vault:"
dkim_verify "$work"/box/you/new/* || die "the signatures of the message"

# A key that never leaves Vault takes over.
root_setup -t transit >"$work/transit.log" 2>&1 || die "setup.sh -t transit"
root write -f transit/keys/dkim-sender.example type=rsa-2048 >>"$work/transit.log"
root kv put -mount=secret postroad/dkim/sender.example/transit-1 transit_key=dkim-sender.example transit_version=1 state=generated >>"$work/transit.log"
dns_publish sender.example "$dns"
within 30 activated transit-1
retired() { dkim retire sender.example "$rsa" --force >"$work/retire.log" 2>&1; }
within 30 retired
dkim_dns_records "$dns" sender.example transit-1 "$ed" >"$work/records"
rm -f "$work"/box/you/new/*
sleep 60 # until every signer knows
send "a key that never leaves Vault"
within 420 mails "$work/box/you" 1
say "signatures of a message, RSA by Vault's transit engine:"
dkim_verify "$work"/box/you/new/* || die "the signatures with transit"
grep -q 's=transit-1' "$work"/box/you/new/* || die "the transit key did not sign"

within 20 queue_is_empty
stop_server
say "vault: keys made, checked and activated in Vault; signatures of KV and of transit keys good for two verifiers"
