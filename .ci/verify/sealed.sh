#!/bin/bash
# Vault is sealed when Postroad starts: mail is accepted and waits, `postroad queue list`, `postroad status` and a metric say why, nothing leaves
# unsigned; when Vault is unsealed the mail leaves by itself, signed, and all is well. Then Vault is sealed while mail goes on: the keys in memory sign.
source "$(dirname "$0")/lib.sh"
. .ci/verify/dkim-lib.sh
need curl swaks postfix openssl
dkim_need
. .ci/verify/vault-lib.sh

build
free_ports smtp mail
vault_start
vault_roles signer
unseal_key=$(sed -n 's/^Unseal Key: //p' "$work/vault.log")
keys sender.example # by openssl, with their records
for name in rsa ed25519; do
	root kv put -mount=secret "postroad/dkim/sender.example/$name" "private_key=@$work/secrets/dkim/sender.example/$name.pem" >"$work/kv.log"
done
root operator seal >"$work/seal.log" 2>&1 || die "vault operator seal"
postfix_start "$mail"
cat >"$work/postroad.yaml" <<CONF
hostname: relay.sender.example
domain: sender.example
data_dir: $work/data
ingress: {listeners: [{address: "127.0.0.1:$smtp"}]}
$(vault_settings signer)
delivery:
  routes: [{domains: [box.example, sender.example], via: "smtp:[127.0.0.1]:$mail", allow_private: true}]
log: {format: json}
CONF
serve

send() {
	timeout 180 swaks --timeout 120 --server "127.0.0.1:$smtp" --from rider@sender.example --to you@box.example --header "Subject: $1" \
		--body 'Horses are changed at every station.' >"$work/swaks.log" 2>&1 || die "swaks: message $1 was not accepted"
}
for n in $(seq 12); do send "$n"; done
metric() { curl -sf -m 5 --unix-socket "$work/data/ops.sock" http://postroad/metrics | sed -n "s/^$1 //p"; }
said() { [ "$(metric relay_signer_keys_out_of_reach)" = 1 ]; }
within 60 said
explained() { postroad queue list >"$work/list.log" && grep -q 'out of reach\|when signed' "$work/list.log"; }
within 20 explained
[ "$(postroad --json queue list | wc -l)" = 12 ] || die "not all twelve messages wait"
[ ! -e "$work/box/you/new" ] || [ "$(find "$work/box/you/new" -type f | wc -l)" = 0 ] || die "a message left without a signature"
say "Vault is sealed; twelve messages were accepted and wait, relay_signer_keys_out_of_reach is 1:"
head -n 4 "$work/list.log" | cut -c1-150 | sed 's/^/  /'
ends() { # status: it ends with that status
	local ended=0
	postroad status >"$work/status.log" 2>&1 || ended=$?
	[ "$ended" = "$1" ]
}
tells() { # name of Vault, what is wrong, since when, how many mails wait
	ends 1 && grep -q '^[0-9. ]*Vault is sealed (' "$work/status.log" && grep -q 'since 20.* ago) on ' "$work/status.log" &&
		grep -q '12 mails wait for their signatures' "$work/status.log" && grep -q 'to do: unseal it' "$work/status.log"
}
within 30 tells
say "postroad status ends with 1 and says:"
sed -n '1,/^nodes/p' "$work/status.log" | sed '$d;s/^/  /'

begun=$SECONDS
root operator unseal "$unseal_key" >"$work/unseal.log" 2>&1 || die "vault operator unseal"
within 180 mails "$work/box/you" 12
say "$((SECONDS - begun)) s after it was unsealed all have left; signatures of one:"
dkim_verify "$(find "$work/box/you/new" -type f | head -n 1)" || die "the signatures"
[ "$(metric relay_signer_keys_out_of_reach)" = 0 ] || die "the metric still says that keys are out of reach"
well() { ends 0 && grep -q '^all well' "$work/status.log"; }
within 60 well
say "postroad status ends with 0: $(head -n 1 "$work/status.log")"

root operator seal >"$work/seal.log" 2>&1
sleep 20 # polls fail
send "while it is sealed"
within 20 mails "$work/box/you" 13
say "sealed again: mail goes on with the keys in memory"
within 20 queue_is_empty
stop_server
say "sealed: a sealed Vault holds mail that needs a key it never gave, and nothing else; it leaves by itself"
