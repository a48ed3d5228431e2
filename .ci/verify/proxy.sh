#!/bin/bash
# Two nodes behind Debian's HAProxy with PROXY v2. The client's own address stands in Received and in the log, and trust and limits go by it,
# in clear and under TLS; who comes past the balancer, or without its header, is refused; HAProxy's own checks are no client, and show it by
# a dialogue and by /readyz that a node stops, while mail goes on. Clients come from 127.0.0.2 (trusted), 127.0.0.4 (a stranger) and
# 127.0.0.5 (trusted), the balancer from 127.0.0.3.
source "$(dirname "$0")/lib.sh"
source .ci/verify/fleet-lib.sh
source .ci/verify/haproxy-lib.sh
haproxy_need
need curl openssl swaks libnet-ssleay-perl postfix

build
authority
free_ports smtp1 smtps1 ready1 smtp2 smtps2 ready2 front fronts stats sink
balancer=127.0.0.3
mkdir "$work/mails"
chmod 777 "$work/mails"
smtp-sink -u nobody -d "$work/mails/%M." "127.0.0.1:$sink" 100 >"$work/smtp-sink.log" 2>&1 &
pids+=($!)
within 30 answers "$sink"

# node NAME DATA SMTP SMTPS READY writes the settings of a node.
node() {
	local tls="cert: $work/tls/cert.pem, key: $work/tls/key.pem" networks="trusted_networks: [127.0.0.2/32, 127.0.0.5/32], proxy_networks: [$balancer/32]"
	cat >"$work/$1.yaml" <<-CONF
		hostname: relay.sender.example
		data_dir: $work/$2
		ingress:
		  listeners:
		    - {address: "127.0.0.1:$3", $networks, tls: starttls, $tls, max_client_connections: 5}
		    - {address: "127.0.0.1:$4", $networks, tls: implicit, $tls}
		signer: {missing_key: pass}
		delivery: {routes: [{domains: ["*"], via: "smtp:[127.0.0.1]:$sink", tls: none, allow_private: true}]}
		ops: {address: "127.0.0.1:$5"}
		log: {format: json}
	CONF
}
node postroad data "$smtp1" "$smtps1" "$ready1"
node second data2 "$smtp2" "$smtps2" "$ready2"

sed 's/127.0.0.2\/32/127.0.0.0\/8/' "$work/postroad.yaml" >"$work/open.yaml"
"$work/postroad" config check -c "$work/open.yaml" >"$work/open.log" 2>&1 && die "a trusted network may hold the balancer"
grep -q 'open relay' "$work/open.log" || die "config check does not say what is wrong"

"$work/postroad" serve -c "$work/second.yaml" 2>>"$work/second.log" &
pids+=($!)
serve
within 60 curl -sf "http://127.0.0.1:$ready2/readyz"
haproxy_start "$stats" < <(
	haproxy_road submission "$front" smtp "$smtp1" "$smtp2"
	haproxy_road submissions "$fronts" "$ready1" "$smtps1"
)
for name in submission-1 submission-2 submissions-1; do within 30 haproxy_is $name UP; done
say "HAProxy's checks: both nodes are up, by a dialogue and by /readyz"

# send ADDRESS PORT SUBJECT [FLAGS…] sends through HAProxy from an address.
send() {
	local from=$1 port=$2 subject=$3
	shift 3
	timeout 180 swaks --timeout 120 --server 127.0.0.1 --port "$port" --local-interface "$from" --helo client.sender.example \
		--from rider@sender.example --to you@box.example --header "Subject: $subject" "$@" >"$work/swaks.log" 2>&1
}

# came SUBJECT sets $file to the message that came.
came() { file=$(grep -rl "^Subject: $1" "$work/mails"); }

for way in "$front plain" "$front starttls --tls" "$fronts implicit --tls-on-connect"; do
	read -r port name flags <<<"$way"
	send 127.0.0.2 "$port" "by $name" $flags || die "$name: a trusted client is refused"
	within 30 came "by $name"
	grep -q '(\[127.0.0.2\])' "$file" || die "$name: Received does not have the client's own address"
	! grep -q '127\.0\.0\.3' "$file" || die "$name: the message names the balancer"
done
logged() { [ "$(cat "$work/serve.log" "$work/second.log" | grep '"message accepted"' | grep -c '"remote":"127.0.0.2:')" = 3 ]; }
within 30 logged # the client's own address, for each
say "a trusted client behind HAProxy: 127.0.0.2 in Received and in the log; in clear, after STARTTLS, with TLS from the first octet on"

send 127.0.0.4 "$front" stranger && die "a stranger behind HAProxy may relay"
grep -q '550 5.7.1' "$work/swaks.log" || die "a stranger behind HAProxy is not answered 550"
say "a stranger behind HAProxy: $(grep -o '550 5.7.1.*' "$work/swaks.log" | head -n 1)"

python - "$front" <<'PYTHON' || die "the limit does not go by the client's own address"
import socket, sys
def greeting(source):
    s = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 20, (source, 0))
    return s, s.recv(200)
held = [greeting("127.0.0.5") for _ in range(12)] # two nodes, five connections each
codes = [text[:9] for _, text in held]
assert sum(c.startswith(b"220 ") for c in codes) == 10 and codes.count(b"421 4.7.0") == 2, codes
assert greeting("127.0.0.2")[1].startswith(b"220 "), "another client is refused"
PYTHON
say "limits: one client's connections above its limit get 421, another client does not"

# With a header that is not the balancer's, from the balancer without one, or with half of one.
python - "$smtp1" "$balancer" <<'PYTHON' || die "somebody comes in beside the balancer"
import socket, sys
port, balancer = int(sys.argv[1]), sys.argv[2]
def say(source, octets):
    got = b""
    with socket.create_connection(("127.0.0.1", port), 20, (source, 0)) as s:
        try:
            s.sendall(octets)
            while chunk := s.recv(1000):
                got += chunk
        except ConnectionError:
            pass
    return got
header = b"PROXY TCP4 127.0.0.2 127.0.0.1 4000 25\r\n"
for source in ["127.0.0.1", "127.0.0.2", "127.0.0.4"]:
    for octets in [b"", header, header + b"EHLO x\r\n"]:
        got = say(source, octets)
        assert got == b"" or got.startswith(b"554 5.7.1 "), (source, octets, got) # b"": the reset came before the reply was read
    print("from %s: %s" % (source, say(source, b"").decode().strip()))
for octets in [b"EHLO x\r\nMAIL FROM:<rider@sender.example>\r\n", b"PROXY TCP4 127.0.0.2 127.0.0.1 4000\r\nEHLO x\r\n", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff" + b"x" * 70000]:
    got = say(balancer, octets)
    assert got == b"", (octets[:40], got)
print("from the balancer, but without its header: no word")
PYTHON

# A node stops while a client sends without pause.
(
	while [ ! -e "$work/enough" ]; do
		if send 127.0.0.2 "$front" "while a node stops"; then echo sent; else grep '^<\*\*\|^\*\*\*' "$work/swaks.log" | tail -n 1; fi
	done >"$work/meanwhile"
) &
loop=$!
pids+=($loop)
within 30 grep -q sent "$work/meanwhile"
stop_server
within 20 haproxy_is submission-1 DOWN
within 20 haproxy_is submissions-1 DOWN
within 20 haproxy_is submission-2 UP
before=$(grep -c sent "$work/meanwhile")
goes_on() { [ "$(grep -c sent "$work/meanwhile")" -ge $((before + 5)) ]; }
within 60 goes_on
touch "$work/enough"
wait $loop
! grep -v '^sent$\|421 4\.3\.2' "$work/meanwhile" || die "a client notices more than a 421 4.3.2"
say "a node stopped: HAProxy sees it; meanwhile $(grep -c sent "$work/meanwhile") messages were sent, $(grep -c 421 "$work/meanwhile" || true) told to come again, none lost"

say "proxy: behind HAProxy the client's own address counts, nobody comes in beside it, and a node that stops is not noticed"
