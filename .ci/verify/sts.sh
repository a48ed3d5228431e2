#!/bin/bash
# MTA-STS with programs that are not ours: Knot has the records, Python the policies, behind a certificate of a CA made here, and Debian's
# Postfix is every mail host. Under a policy in mode enforce a certificate of another name, and a host that the policy does not name, keep
# the mail waiting; in mode testing it is delivered, and counted for the TLS report. Once a certificate is put right its mail goes out. A
# policy that was fetched holds while its host is away, over a restart too. Needs root, for a network of its own with public addresses:
# policies are not fetched from private ones.
source "$(dirname "$0")/lib.sh"
source "$(dirname "$0")/story-lib.sh"
. .ci/verify/dns-lib.sh

if [ $# -eq 0 ]; then # else it has called itself with the program, inside of that network
	[ "$(id -u)" = 0 ] || die "it needs root, for a network of its own"
	need curl swaks postfix knot-dnsutils iproute2 python3
	dns_need
	build
	timeout --kill-after=30 1800 unshare --net "$0" "$work/postroad" &
	pids+=($!)
	wait $! || die "MTA-STS is not kept"
	exit
fi
cp "$1" "$work/postroad"
ip link set lo up
ip address add 198.51.100.1/24 dev lo # all of these addresses are ours then

# signed FILE NAME… makes a key and a certificate of our CA for these hosts.
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj '/CN=CA' -keyout "$work/ca.key" -out "$work/ca.pem" 2>/dev/null
signed() {
	local file=$1 names
	shift
	names=$(printf ',DNS:%s' "$@")
	openssl req -x509 -CA "$work/ca.pem" -CAkey "$work/ca.key" -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 \
		-subj "/CN=$1" -addext "subjectAltName=${names#,}" -keyout "$work/new.key" -out "$work/new.crt" 2>/dev/null
	cat "$work/new.key" "$work/new.crt" >"$file"
}
export SSL_CERT_FILE=$work/ca.pem

# domain NAME ADDRESS MODE CERTIFICATE PATTERN: its mail host mx.NAME at the address has a certificate of that name; its policy names the pattern.
declare -A addresses
zone='' boxes='' listeners=''
domain() {
	addresses[$1]=$2
	zone+="$1 MX 10 mx.$1"$'\n'"mx.$1 A $2"$'\n'"mta-sts.$1 A 198.51.100.2"$'\n'
	zone+="_mta-sts.$1 TXT \"v=STSv1; id=1\""$'\n'"_smtp._tls.$1 TXT \"v=TLSRPTv1; rua=mailto:you@right.sts.test\""$'\n'
	boxes+=" you@$1.sts.test=$1/,"
	listeners+="$2:25 inet n - n - - smtpd -o smtpd_tls_chain_files=$work/$1.pem"$'\n'
	signed "$work/$1.pem" "$4"
	mkdir -p "$work/web/mta-sts.$1.sts.test/.well-known"
	printf 'version: STSv1\r\nmode: %s\r\nmax_age: 86400\r\nmx: %s\r\n' "$3" "$5" >"$work/web/mta-sts.$1.sts.test/.well-known/mta-sts.txt"
}
domain right 198.51.100.11 enforce mx.right.sts.test mx.right.sts.test
domain wrong 198.51.100.12 enforce mx.elsewhere.test mx.wrong.sts.test
domain trial 198.51.100.13 testing mx.elsewhere.test mx.trial.sts.test
domain other 198.51.100.14 enforce mx.other.sts.test '*.sts.test' # one label only
domain late 198.51.100.15 enforce mx.elsewhere.test mx.late.sts.test

postfix_start 25
mailhost=$work/postfix/etc
printf '%s' "$listeners" >>"$mailhost/master.cf"
postconf -c "$mailhost" -e "virtual_mailbox_domains = right.sts.test wrong.sts.test trial.sts.test other.sts.test late.sts.test" \
	"virtual_mailbox_maps = inline:{${boxes%,}}" 'smtpd_peername_lookup = no' 'smtpd_tls_cert_file =' 'smtpd_tls_key_file ='

# presents NAME HOST tells whether the mail host of a domain shows a certificate of that host.
presents() {
	timeout 10 openssl s_client -starttls smtp -connect "${addresses[$1]}:25" </dev/null 2>/dev/null | openssl x509 -noout -ext subjectAltName | grep -q "DNS:$2\$"
}

# shows NAME HOST gives the mail host of a domain such a certificate.
shows() {
	signed "$work/$1.pem" "$2"
	timeout 180 postfix -c "$mailhost" reload >"$work/postfix-reload.log" 2>&1 || die "Postfix does not reload"
	within 30 presents "$1" "$2"
}
shows right mx.right.sts.test

free_ports smtp dns
printf '$TTL 1\n@ SOA ns hostmaster 1 3600 900 86400 1\n@ NS ns\nns A 127.0.0.1\n%s' "$zone" >"$work/sts.test.zone"
knot_start 127.0.0.1 "$dns" sts.test "$work/sts.test.zone"

signed "$work/web.pem" mta-sts.{right,wrong,trial,other,late}.sts.test
cat >"$work/web.py" <<'PYTHON'
import http.server, os, ssl, sys
class Policies(http.server.SimpleHTTPRequestHandler):
    def translate_path(self, path): return super().translate_path("/" + self.headers["Host"] + path)
os.chdir(sys.argv[1] + "/web")
server = http.server.ThreadingHTTPServer(("198.51.100.2", 443), Policies)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1] + "/web.pem")
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
PYTHON
/usr/bin/python3 "$work/web.py" "$work" >"$work/web.log" 2>&1 &
web=$!
pids+=("$web")
web_answers() { (exec 3<>/dev/tcp/198.51.100.2/443) 2>/dev/null; }
within 30 web_answers

keys sender.example
cat >"$work/postroad.yaml" <<CONF
hostname: relay.sender.example
domain: sender.example
data_dir: $work/data
secrets: {dir: $work/secrets}
ingress: {listeners: [{address: "127.0.0.1:$smtp"}]}
delivery:
  resolvers: ["127.0.0.1:$dns"]
  tls_reports: {enabled: true}
  retry: [1h] # only queue retry
  routes: [{domains: ["*"], via: mx}]
log: {format: json}
CONF
serve

# listed ID PATTERN tells whether the list of the queue says that of a message.
listed() { postroad queue list >"$work/list.log" 2>&1 && grep -q -- "$1.*$2" "$work/list.log"; }

# counted RESULT NUMBER tells how often sessions came to that result of RFC 8460, since the start.
counted() {
	curl -sf -m 30 --unix-socket "$work/data/ops.sock" http://postroad/metrics >"$work/metrics" &&
		grep -q "^relay_delivery_tls_failures_total{result=\"$1\"} $2\$" "$work/metrics"
}

say "what postroad expects:"
for name in right trial; do
	postroad check policy $name.sts.test >"$work/policy.log" 2>&1 || die "check policy"
	grep 'sts' "$work/policy.log" | sed 's/^ */  /'
done

say "enforce, the certificate is right:"
send you@right.sts.test
story "$id" ' delivered .*TLS1.* sts 250 '
within 30 mails "$work/box/right" 1

say "enforce, the certificate is another host's:"
send you@wrong.sts.test
waits=$id
story "$waits" ' deferred .*4\.7\.5.*not valid for mx.wrong.sts.test'
within 30 listed "$waits" 'not valid for mx.wrong.sts.test'

say "enforce, the policy does not name the host:"
send you@other.sts.test
story "$id" ' deferred .*4\.7\.0.*does not name the host.*\[tls\]'
within 30 listed "$id" 'does not name the host'

say "testing, the certificate is another host's:"
within 30 counted certificate-host-mismatch 1
send you@trial.sts.test
story "$id" ' delivered .*TLS1.* sts-testing 250 '
within 30 mails "$work/box/trial" 1
within 30 counted certificate-host-mismatch 2

say "the certificate is put right:"
mails "$work/box/wrong" 1 && die "mail went to a host with another's certificate"
shows wrong mx.wrong.sts.test
postroad queue retry "$waits" >"$work/retry.log" 2>&1 || die "queue retry"
story "$waits" ' delivered .*TLS1.* sts 250 '
within 30 mails "$work/box/wrong" 1

say "the policy host is away, postroad begins anew, and the certificate of the first host is another's:"
stop_server # which adds what it has counted to the queue
grep -rqa '"certificate-host-mismatch","receiving-mx-hostname":"mx.trial.sts.test"' "$work/data" || die "the session with the host in mode testing is not counted for the report"
kill "$web"
wait_end "$web" 20 || die "the policy host does not stop"
{
	printf 'server 127.0.0.1 %s\nzone sts.test.\ndel _mta-sts.right.sts.test. TXT\n' "$dns"
	printf 'add _mta-sts.right.sts.test. 1 TXT "v=STSv1; id=2"\nsend\n'
} >"$work/updates"
knsupdate -y "hmac-sha256:dkim-update:$(sed -n 's/.*secret "\(.*\)";/\1/p' "$dns_key")" "$work/updates" >"$work/knsupdate.log" 2>&1 || die "knsupdate"
shows right mx.elsewhere.test
serve
send you@late.sts.test # whose policy was never fetched
story "$id" ' delivered .*TLS1.* may 250 '
within 30 mails "$work/box/late" 1
within 30 counted sts-policy-fetch-error 1
send you@right.sts.test # whose policy is in the queue
waits=$id
story "$waits" ' deferred .*4\.7\.5.*not valid for mx.right.sts.test'
shows right mx.right.sts.test
postroad queue retry "$waits" >"$work/retry.log" 2>&1 || die "queue retry"
story "$waits" ' delivered .*TLS1.* sts 250 '
within 30 mails "$work/box/right" 2

stop_server
mails "$work/box/other" 1 && die "mail went to a host that the policy does not name"
say "mta-sts: what a policy in mode enforce refuses waits and goes once it is right, mode testing delivers and counts, a policy holds while its host is away"
