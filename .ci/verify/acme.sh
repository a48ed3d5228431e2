#!/bin/bash
# A server's certificate by ACME: Let's Encrypt's test authority, Pebble, which looks for the proofs at Debian's Knot, where `postroad secrets
# acme` publishes them by signed updates. The certificate is in force at a listener of a running server without a restart; a second run leaves
# it alone; what cannot be proved changes nothing.
source "$(dirname "$0")/lib.sh"
. .ci/verify/dns-lib.sh
need curl openssl knot-dnsutils
dns_need

pebble=$(.ci/acme/build.sh) || die "Pebble cannot be built"
build
free_ports smtp dns nats ca admin

# zone NAME NAMESERVERS RECORD… writes a zone file.
zone() {
	local name=$1 servers=$2 server
	shift 2
	printf '$ORIGIN %s.\n$TTL 1\n@ SOA ns1 hostmaster 1 60 60 600 1\n' "$name"
	for server in $servers; do printf '@ NS %s\n%s A %s\n' "${server%=*}" "${server%=*}" "${server#*=}"; done
	printf '%s\n' "$@"
} >"$work/$1.zone"
zone sender.example ns1=127.0.0.1 'relay A 127.0.0.1' '_acme-challenge.mx CNAME mx.proofs'
zone other.example ns1=127.0.0.1 '_acme-challenge.mx CNAME other.proofs.sender.example.'
zone half.example 'ns1=127.0.0.1 ns2=127.0.0.2' 'relay A 127.0.0.1' # nobody listens at the second one
knot_start 127.0.0.1 "$dns" $(for name in sender other half; do echo "$name.example $work/$name.example.zone"; done)

# The authority: one nonce in ten is refused, and accounts are bound to one that it knows.
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=authority -addext subjectAltName=IP:127.0.0.1 \
	-keyout "$work/ca-key.pem" -out "$work/ca.pem" 2>/dev/null
bound=$(openssl rand -base64 32 | tr '+/' '-_' | tr -d =)
(umask 077 && echo "$bound" >"$work/bound.key")
cat >"$work/pebble.json" <<CONF
{"pebble": {"listenAddress": "127.0.0.1:$ca", "managementListenAddress": "127.0.0.1:$admin",
 "certificate": "$work/ca.pem", "privateKey": "$work/ca-key.pem", "retryAfter": {"authz": 1, "order": 1}, "keyAlgorithm": "ecdsa",
 "externalAccountBindingRequired": true, "externalAccountMACKeys": {"house": "$bound"},
 "domainBlocklist": ["blocked.sender.example"], "profiles": {"default": {"description": "", "validityPeriod": 7776000}}}}
CONF
PEBBLE_VA_NOSLEEP=1 PEBBLE_WFE_NONCEREJECT=10 PEBBLE_AUTHZREUSE=0 "$pebble" -config "$work/pebble.json" -dnsserver "127.0.0.1:$dns" >"$work/pebble.log" 2>&1 &
pids+=("$!")
within 30 answers "$admin"
curl -sf --cacert "$work/ca.pem" "https://127.0.0.1:$admin/roots/0" >"$work/root.pem" || die "the authority shows no root"

# A certificate of which a third of the life is left but for a minute.
mkdir -p -m 700 "$work/secrets" "$work/secrets/tls" "$work/secrets/tls/relay"
(
	umask 077
	cd "$work/secrets/tls/relay"
	openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=relay -addext subjectAltName=DNS:relay.sender.example -keyout key.pem -out "$work/old.csr" 2>/dev/null
	touch "$work/index"
	printf '[ca]\ndefault_ca=a\n[a]\ndatabase=%s\nrand_serial=yes\nnew_certs_dir=%s\npolicy=p\ndefault_md=sha256\ncopy_extensions=copy\n[p]\ncommonName=supplied\n' "$work/index" "$work" >"$work/old.conf"
	openssl ca -batch -config "$work/old.conf" -selfsign -keyfile key.pem -in "$work/old.csr" -notext -out cert.pem \
		-startdate "$(date -u -d '-60 days -1 minute' +%Y%m%d%H%M%SZ)" -enddate "$(date -u -d '+30 days' +%Y%m%d%H%M%SZ)"
) >"$work/old.log" 2>&1 || die "openssl makes no old certificate"

settings() {
	cat <<-CONF
		hostname: relay.sender.example
		domain: sender.example
		data_dir: $work/data
		queue: {listen: "127.0.0.1:$nats"}
		secrets: {dir: $work/secrets}
		ingress: {listeners: [{address: "127.0.0.1:$smtp", tls: starttls, certificates: [{secret: relay}]}]}
		signer:
		  rotation:
		    resolvers: ["127.0.0.1:$dns"]
		    name_server_port: $dns
		    update_server: 127.0.0.1:$dns
		    update_zone: $1
		    update_key: $dns_key
		log: {format: json}
	CONF
}
settings sender.example >"$work/postroad.yaml"
settings half.example >"$work/half.yaml"
serve

# acme FLAG… has the certificate of the listener issued.
acme() { postroad secrets acme relay --directory "https://127.0.0.1:$ca/dir" --ca "$work/ca.pem" --wait 20s "$@"; }
full=(--accept-terms --email postmaster@sender.example --eab-kid house --eab-key-file "$work/bound.key")
names=relay.sender.example,*.relay.sender.example,mx.sender.example

# shown NAME prints the fingerprint of what the listener shows to a client that trusts the authority's root alone.
shown() {
	openssl s_client -starttls smtp -connect "127.0.0.1:$smtp" -servername "$1" -verify_hostname "$1" -verify_return_error -CAfile "$work/root.pem" \
		</dev/null 2>"$work/client.log" | openssl x509 -noout -fingerprint -sha256 2>>"$work/client.log"
}
stored() { openssl x509 -in "$work/secrets/tls/relay/cert.pem" -noout -fingerprint -sha256; }
orders() { grep -c 'There are now .* orders in the db\|Added order' "$work/pebble.log" || true; }

# refused WHAT WORDS FLAG… must fail with these words and leave everything as it is.
refused() {
	local before what=$1 words=$2
	before=$(stored)
	shift 2
	"$@" >"$work/refused.log" 2>&1 && die "$what: it says nothing"
	grep -q -- "$words" "$work/refused.log" || die "$what: the error does not say \"$words\""
	[ "$(stored)" = "$before" ] || die "$what: the certificate has changed"
	[ -z "$(kdig +short -p "$dns" @127.0.0.1 _acme-challenge.relay.half.example TXT)" ] || die "$what: a record is left in the DNS"
	say "$what: $(tail -n 1 "$work/refused.log" | cut -c1-260)"
}

shown relay.sender.example >"$work/verdict" && die "a client takes the old certificate"
refused "terms not accepted" "give --accept-terms" acme --eab-kid house --eab-key-file "$work/bound.key"
refused "no account elsewhere" "give --eab-kid" acme --accept-terms
acme --dry-run --names "$names,mx.other.example" 2>"$work/dry.log" || die "a dry run fails"
grep -q 'would prove mx.other.example by a TXT record of other.proofs.sender.example' "$work/dry.log" || die "a dry run does not see the alias into another zone"

old=$(stored)
acme "${full[@]}" --names "$names" 2>"$work/first.log" || die "no certificate"
say "postroad secrets acme relay:"
sed 's/^/  /' "$work/first.log" | cut -c1-160
first=$(stored)
[ "$first" != "$old" ] && [ "$(shown relay.sender.example)" = "$first" ] || die "the listener does not show the new certificate"
[ "$(shown mx.sender.example)" = "$first" ] && [ "$(shown a.relay.sender.example)" = "$first" ] || die "the certificate is not for all names"
for record in _acme-challenge.relay mx.proofs; do
	[ -z "$(kdig +short -p "$dns" @127.0.0.1 "$record.sender.example" TXT)" ] || die "the record of $record is left in the DNS"
done
[ "$(stat -c %a "$work"/secrets/acme/*/key.pem "$work/secrets/tls/relay/key.pem" | sort -u)" = 600 ] || die "others may read a key"

before=$(orders)
[ "$before" -ge 1 ] || die "the authority's log shows no order"
acme 2>"$work/second.log" || die "a second run fails"
[ "$(stored)" = "$first" ] && [ "$(orders)" = "$before" ] || die "a second run has done something"
say "again: $(cat "$work/second.log")"
acme --force 2>"$work/third.log" || die "no second certificate"
second=$(stored)
[ "$second" != "$first" ] && [ "$(shown relay.sender.example)" = "$second" ] || die "the listener does not show the second certificate"

refused "a name server is dead" "ns2.half.example" postroad -c "$work/half.yaml" secrets acme relay --directory "https://127.0.0.1:$ca/dir" \
	--ca "$work/ca.pem" --names relay.half.example --dns-wait 3s
refused "not our zone" "is not in zone sender.example" acme --names relay.half.example
refused "no such zone" "find the zone of _acme-challenge.relay.nowhere.example" acme --names relay.nowhere.example
refused "a name that it refuses" "rejectedIdentifier" acme --names blocked.sender.example
[ "$(shown relay.sender.example)" = "$second" ] || die "the listener shows another certificate after all that"
kill -0 "$server" || die "the server has ended"
stop_server
say "acme: a certificate for three names proved in the DNS, in force at a running listener, left alone until due, replaced with --force; four faults changed nothing"
