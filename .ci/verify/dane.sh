#!/bin/bash
# DANE with programs that are not ours: Knot DNS signs the zones, unbound validates them, Debian's Postfix is every mail host. A certificate
# that matches its TLSA record is delivered to; one that does not, and records that are bogus, keep the mail waiting; in a zone that nobody
# signed a wrong record means nothing. Once a wrong record is put right its mail goes out. Needs root, for a network of its own in which
# port 25 is free.
source "$(dirname "$0")/lib.sh"
source "$(dirname "$0")/story-lib.sh"

if [ $# -eq 0 ]; then # else it has called itself with the program, inside of that network
	[ "$(id -u)" = 0 ] || die "it needs root, for a network of its own"
	need curl swaks postfix openssl knot knot-dnsutils unbound iproute2
	build
	timeout --kill-after=30 1800 unshare --net "$0" "$work/postroad" &
	pids+=($!)
	wait $! || die "DANE is not kept"
	exit
fi
cp "$1" "$work/postroad"
ip link set lo up

free_ports smtp auth dns
keys sender.example
postfix_settings='virtual_mailbox_domains = good.dane.test wrong.dane.test bogus.dane.test plain.test
virtual_mailbox_maps = inline:{you@good.dane.test=good/, you@wrong.dane.test=wrong/, you@bogus.dane.test=bogus/, you@plain.test=plain/}'
postfix_start 25
mailhost=$work/postfix/etc
right=$(openssl x509 -in "$mailhost/cert.pem" -noout -pubkey | openssl pkey -pubin -outform DER | sha256sum | cut -d' ' -f1)
wrong=$(openssl genpkey -algorithm ED25519 | openssl pkey -pubout -outform DER | sha256sum | cut -d' ' -f1)

# zone writes the zones; the argument is what stands in the TLSA record of the host that has it wrong.
zone() {
	cat >"$work/dane.test.zone" <<-ZONE
		\$TTL 2
		@ SOA ns hostmaster $((++serial)) 3600 900 86400 2
		@ NS ns
		ns A 127.0.0.1
		good MX 10 mx
		mx A 127.0.0.1
		_25._tcp.mx TLSA 3 1 1 $right
		wrong MX 10 mx-wrong
		mx-wrong A 127.0.0.1
		_25._tcp.mx-wrong TLSA 3 1 1 $1
		bogus MX 10 mx-bogus
		mx-bogus A 127.0.0.1
		; the zone of its TLSA record is signed with another key than this one
		_tcp.mx-bogus NS ns
		_tcp.mx-bogus DS 4711 13 2 $wrong
	ZONE
	cat >"$work/_tcp.mx-bogus.dane.test.zone" <<-ZONE
		\$TTL 2
		@ SOA ns.dane.test. hostmaster.dane.test. 1 3600 900 86400 2
		@ NS ns.dane.test.
		_25 TLSA 3 1 1 $right
	ZONE
	cat >"$work/plain.test.zone" <<-ZONE
		\$TTL 2
		@ SOA ns hostmaster 1 3600 900 86400 2
		@ NS ns
		@ MX 10 mx
		ns A 127.0.0.1
		mx A 127.0.0.1
		_25._tcp.mx TLSA 3 1 1 $wrong
	ZONE
}
serial=0
zone "$wrong"

mkdir -m 700 "$work/knot"
{
	printf 'server:\n  listen: 127.0.0.1@%s\n  rundir: %s\ndatabase:\n  storage: %s\nlog:\n  - target: stdout\n    any: info\n' "$auth" "$work/knot" "$work/knot"
	printf 'policy:\n  - id: p\n    algorithm: ecdsap256sha256\n    single-type-signing: on\n    propagation-delay: 1\nzone:\n'
	for name in dane.test _tcp.mx-bogus.dane.test; do
		printf '  - domain: %s\n    file: %s\n    dnssec-signing: on\n    dnssec-policy: p\n    zonefile-sync: -1\n    zonefile-load: difference-no-serial\n    journal-content: all\n' \
			"$name" "$work/$name.zone"
	done
	printf '  - domain: plain.test\n    file: %s\n' "$work/plain.test.zone"
} >"$work/knot.conf"
knotd -c "$work/knot.conf" >"$work/knot.log" 2>&1 &
pids+=("$!")
within 30 answers "$auth"
ds() { keymgr -c "$work/knot.conf" dane.test ds 2>/dev/null | grep -m 1 ' 13 2 '; }
within 30 ds
anchor=$(ds)

{
	printf 'server:\n  interface: 127.0.0.1@%s\n  username: ""\n  chroot: ""\n  directory: "%s"\n  pidfile: "%s/unbound.pid"\n  use-syslog: no\n  do-daemonize: no\n' "$dns" "$work" "$work"
	printf '  do-not-query-localhost: no\n  module-config: "validator iterator"\n  local-zone: "test." nodefault\n  domain-insecure: "plain.test"\n  trust-anchor: "%s"\n' "$anchor"
	printf '  val-log-level: 2\n  ede: yes\n  cache-min-ttl: 0\n  num-threads: 1\nremote-control:\n  control-enable: no\n'
	for name in dane.test _tcp.mx-bogus.dane.test plain.test; do
		printf 'stub-zone:\n  name: "%s"\n  stub-addr: 127.0.0.1@%s\n' "$name" "$auth"
	done
} >"$work/unbound.conf"
unbound-checkconf "$work/unbound.conf" >"$work/unbound-check.log" 2>&1 || die "unbound does not like its configuration"
unbound -d -c "$work/unbound.conf" >"$work/unbound.log" 2>&1 &
pids+=("$!")

# proven NAME TYPE tells whether unbound gives an answer with the AD bit.
proven() { kdig -p "$dns" @127.0.0.1 +adflag "$1" "$2" | grep -q '^;; Flags:.* ad;'; }
within 30 proven good.dane.test MX
within 30 proven _25._tcp.mx.dane.test TLSA
is_bogus() { kdig -p "$dns" @127.0.0.1 "$1" "$2" | grep -q 'status: SERVFAIL'; }
within 30 is_bogus _25._tcp.mx-bogus.dane.test TLSA
proven plain.test MX && die "unbound proves what nobody signed"
within 30 proven bogus.dane.test MX # though its host has a bogus record

cat >"$work/postroad.yaml" <<CONF
hostname: relay.sender.example
domain: sender.example
data_dir: $work/data
secrets: {dir: $work/secrets}
ingress: {listeners: [{address: "127.0.0.1:$smtp"}]}
delivery:
  resolvers: ["127.0.0.1:$dns"]
  routes: [{domains: ["*"], via: mx, allow_private: true}]
log: {format: json}
CONF
serve

say "what postroad expects:"
postroad check policy good.dane.test >"$work/policy.log" 2>&1 || die "check policy"
grep -q 'tls: dane 3 1 1' "$work/policy.log" || die "check policy does not tell of DANE"
postroad check policy bogus.dane.test >>"$work/policy.log" 2>&1 && die "check policy is content with a bogus record"
postroad explain --hosts rider@sender.example you@plain.test >>"$work/policy.log" 2>&1 || die "explain --hosts"
grep 'host ' "$work/policy.log" | sed 's/^ */  /'

say "record and certificate match:"
send you@good.dane.test
story "$id" ' delivered .*TLS1.* dane'
within 30 mails "$work/box/good" 1

say "the record is of another key:"
send you@wrong.dane.test
waits=$id
story "$id" ' deferred .*4\.7\.5.*TLSA'

say "the record is bogus:"
send you@bogus.dane.test
story "$id" ' deferred .*4\.4\.3.*TLSA'

say "a wrong record that nobody signed:"
send you@plain.test
story "$id" ' delivered .*TLS1.* may'
within 30 mails "$work/box/plain" 1

mails "$work/box/wrong" 1 && die "mail went to a host with another key"
mails "$work/box/bogus" 1 && die "mail went to a host with a bogus record"

say "the wrong record is put right:"
zone "$right"
knotc -c "$work/knot.conf" zone-reload dane.test >"$work/knotc.log" 2>&1 || die "Knot does not load the zone again"
mended() { kdig -p "$dns" @127.0.0.1 +short _25._tcp.mx-wrong.dane.test TLSA | tr -d ' ' | grep -qi "${right:0:56}"; }
within 30 mended
sleep 3 # the answer that the server remembers is over
postroad queue retry "$waits" >"$work/retry.log" 2>&1 || die "queue retry"
story "$waits" ' delivered .*TLS1.* dane'
within 30 mails "$work/box/wrong" 1

stop_server
say "dane: delivered where the TLSA record matches, deferred where it does not or is bogus, not misled by an unsigned one; put right, the mail went out"
