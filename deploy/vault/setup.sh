#!/bin/sh
# Prepares Vault for Postroad: a KV v2 engine, AppRole, one policy and one role for each of ingress, signer, delivery and admin.
# May be run again and again; what is there already is brought up to date. Prints the role ids.
#
#   VAULT_ADDR=… VAULT_TOKEN=… deploy/vault/setup.sh [-m mount] [-p prefix] [-t transit] [-r] [-k pki -d names] [role=file …]
#
# For each role=file a new secret id is made and written to that file, with mode 0600. With -t the transit engine is enabled too, and signers
# sign with its keys named dkim-…, or PREFIX-dkim-… for another prefix than postroad; a later run without -t takes that right away. With -r
# signers may change DKIM keys, which signer.rotation.automatic needs; a later run without -r takes that right away from logins to come.
# With -k the PKI engine is enabled, with a root of its own unless it has an issuer, and gets a role for certificates of these names of
# hosts, with commas between them.
set -eu
umask 077

mount=secret prefix=postroad transit=transit with_transit='' with_rotation='' pki=pki with_pki='' hosts=''
while getopts m:p:t:rk:d: option; do
	case $option in
	m) mount=${OPTARG%/} ;;
	p) prefix=${OPTARG%/} ;;
	t) transit=${OPTARG%/} with_transit=yes ;;
	r) with_rotation=yes ;;
	k) pki=${OPTARG%/} with_pki=yes ;;
	d) hosts=$OPTARG ;;
	*) sed -n '2,12s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
	esac
done
shift $((OPTIND - 1))
here=$(dirname "$0")
roles="ingress signer delivery admin"

fail() {
	echo "setup.sh: $*" >&2
	exit 1
}

for name in "$mount" "$prefix" "$transit" "$pki"; do
	case $name in
	'' | *[!A-Za-z0-9/._-]*) fail "\"$name\" is no path: want letters, digits and / . _ -" ;;
	esac
done
# What roles may use of the transit engine, which all prefixes share, begins with their prefix.
short=$(echo "$prefix" | tr / -) keys=dkim-
[ "$short" = postroad ] || keys=$short-dkim-
case $short in
dkim | dkim-* | *-dkim | *-dkim-*) fail "\"$prefix\": a prefix with the word dkim in it could not be told from the names of transit keys" ;;
esac
case $with_pki/$hosts in
yes/) fail "-k needs -d with the names of the hosts that certificates are for" ;;
/?*) fail "-d is for -k" ;;
*[!A-Za-z0-9./,-]*) fail "\"$hosts\": want names of hosts with commas between them" ;;
esac
for pair; do
	case " $roles " in
	*" ${pair%%=*} "*) ;;
	*) fail "\"$pair\": want role=file, with one of $roles" ;;
	esac
	file=${pair#*=}
	case $pair in
	*=?*) [ -d "$(dirname "$file")" ] || fail "there is no directory $(dirname "$file")" ;;
	*) fail "\"$pair\": want role=file" ;;
	esac
done
command -v vault >/dev/null || fail "the program vault is not in the PATH"
vault token lookup >/dev/null || fail "log in to Vault first: set VAULT_ADDR and VAULT_TOKEN"

mounted() { vault read "sys/mounts/$1" >/dev/null 2>&1; }

if mounted "$mount"; then
	case $(vault read -field=options "sys/mounts/$mount") in
	*version:2*) ;;
	*) fail "what is mounted at $mount is no KV engine of version 2: choose another mount with -m" ;;
	esac
else
	vault secrets enable -path="$mount" -version=2 kv
fi
# Keys must not vanish by themselves. A new engine answers after a moment.
tries=0
until kept=$(vault read -field=delete_version_after "$mount/config"); do
	tries=$((tries + 1))
	[ $tries -lt 10 ] || fail "the configuration of $mount cannot be read"
	sleep 1
done
[ "$kept" = 0s ] || fail "$mount deletes secrets after $kept: choose another mount with -m, or set delete_version_after=0s there"
if [ -n "$with_transit" ] && ! mounted "$transit"; then
	vault secrets enable -path="$transit" transit
fi
[ -z "$with_transit" ] || echo "signers sign with keys of $transit named $keys*"
if [ -n "$with_pki" ]; then
	if ! mounted "$pki"; then
		vault secrets enable -path="$pki" -max-lease-ttl=87600h pki
		# Each start of an ingress and each renewal leaves a certificate in the engine.
		vault write "$pki/config/auto-tidy" enabled=true tidy_cert_store=true interval_duration=24h safety_buffer=24h >/dev/null
	fi
	if ! vault list "$pki/issuers" >/dev/null 2>&1; then
		vault write "$pki/root/generate/internal" common_name="Postroad ($prefix)" key_type=ec key_bits=256 ttl=87600h >/dev/null
		echo "made a root in $pki; clients need it: vault read -field=certificate $pki/cert/ca"
	fi
	name=$short-ingress
	vault write "$pki/roles/$name" allowed_domains="$hosts" allow_bare_domains=true allow_subdomains=false allow_localhost=false \
		allow_ip_sans=false key_type=ec key_bits=256 server_flag=true client_flag=false ttl=72h max_ttl=720h >/dev/null
	echo "role $name of $pki issues certificates for $hosts"
fi
vault read sys/auth/approle >/dev/null 2>&1 || vault auth enable approle

# A policy or role that is of another mount or prefix stays as it is: a/b and a-b would have the same names.
for role in $roles; do
	text=$(vault policy read "$short-$role" 2>/dev/null) || continue
	case $text in
	*"path \"$mount/data/$prefix/"*) ;;
	*) fail "the policy $short-$role is of another mount or prefix than $mount/$prefix: choose another prefix with -p, or delete that policy" ;;
	esac
done

# policy POLICY writes one of the .hcl files here, with that for transit, and prints the name that it has in Vault.
policy() {
	full=$short-$1
	set -- "$here/$1.hcl" "$here/$1-transit.hcl"
	[ -n "$with_transit" ] && [ -f "$2" ] || set -- "$1"
	cat "$@" | sed -e "s#@mount@#$mount#g" -e "s#@prefix@#$prefix#g" -e "s#@transit@#$transit#g" -e "s#@keys@#$keys#g" -e "s#@pki@#$pki#g" \
		-e "s#@name@#$full#g" | vault policy write "$full" - >/dev/null
	echo "$full"
}

for role in $roles; do
	name=$(policy "$role")
	policies=$name
	if [ "$role" = signer ] && [ -n "$with_rotation" ]; then
		policies=$name,$(policy signer-rotation)
		echo "signers may change DKIM keys"
	fi
	# Renewed at two thirds of 20 minutes; made anew at least every 8 hours.
	vault write "auth/approle/role/$name" token_policies="$policies" token_ttl=20m token_max_ttl=8h \
		secret_id_ttl=0 secret_id_num_uses=0 >/dev/null
	echo "$role role id: $(vault read -field=role_id "auth/approle/role/$name/role-id")"
	for pair; do
		[ "${pair%%=*}" = "$role" ] || continue
		file=${pair#*=}
		# Under a passing name first: whoever reads the file finds the old secret id or the new one.
		vault write -f -field=secret_id "auth/approle/role/$name/secret-id" >"$file.part"
		chmod 600 "$file.part"
		mv "$file.part" "$file"
		echo "$role secret id: in $file"
	done
done
