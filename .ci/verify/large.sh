#!/bin/bash
# Messages of 40 MB go through `postroad serve` with default settings (the queue's store takes 1 MiB at a time) and arrive octet for
# octet behind the fields that relays add: one as base64, one as 8bit, then five at once. The memory of the server stays bounded. A
# message of 60 MB is refused with 552, whether the client says its size or not, and leaves nothing behind. Needs root (Postfix does).
#
#   .ci/verify/large.sh 45     other megabytes, up to 52
source "$(dirname "$0")/lib.sh"
need curl postfix openssl
megabytes=${1:-40}
# MiB that the largest resident set may grow by, for one message at a time and for five at once. Measured: 140 and 395. Most of it is the
# cache of the store, which keeps its blocks of 8 MB for 10 s after their last use, and garbage of as much; postroad's own buffers are few.
grow_one=250
grow_five=600

build
free_ports smtp mail
keys sender.example
postfix_start "$mail"
cat >"$work/postroad.yaml" <<CONF
hostname: relay.sender.example
domain: sender.example
data_dir: $work/data
secrets: {dir: $work/secrets}
ingress: {listeners: [{address: "127.0.0.1:$smtp"}]}
delivery:
  routes: [{domains: [box.example], via: "smtp:[127.0.0.1]:$mail", allow_private: true}]
log: {format: json}
CONF
serve

cat >"$work/send.py" <<'PYTHON'
"""send.py PORT MEGABYTES KIND DIRECTORY NAME… sends a message for each name, all at once, and keeps it in DIRECTORY/NAME."""
import base64, os, random, smtplib, sys, threading
port, megabytes, kind, directory, names = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5:]

def body(size):
    if kind == "base64":
        return base64.encodebytes(os.urandom(57 * (size // 77)))
    octets = bytes([x for x in range(256) if x not in (0, 10, 13)])
    table = bytes(octets[i % len(octets)] for i in range(256))
    raw = os.urandom(size).translate(table)
    lines, at, r = [], 0, random.Random(megabytes)
    while at < size:
        n = r.randint(1, 990)
        lines.append(raw[at:at + n])
        at += n
    for i in range(0, len(lines), 7):
        lines[i] = b"." + lines[i]      # dots to be stuffed
    return b"\n".join(lines) + b"\n\n.\n\n" # and an end like SMTP's own

def send(name):
    text = ("From: rider@sender.example\nTo: you@box.example\nSubject: %s\nDate: Wed, 25 Nov 2026 12:00:00 +0000\n"
            "Message-ID: <%s@sender.example>\nMIME-Version: 1.0\nContent-Type: application/octet-stream\n"
            "Content-Transfer-Encoding: %s\n\n" % (name, name, kind)).encode() + body(megabytes * 1000000)
    with open(os.path.join(directory, name), "wb") as f:
        f.write(text)
    wire = text.replace(b"\n", b"\r\n")
    s = smtplib.SMTP("127.0.0.1", port, timeout=300)
    s.ehlo()
    size = [] if kind == "8bit" else ["SIZE=%d" % len(wire)]
    code, reply = s.docmd("MAIL", "FROM:<rider@sender.example> BODY=8BITMIME " + " ".join(size))
    if code == 250:
        s.docmd("RCPT", "TO:<you@box.example>")
        code, reply = s.data(wire)
    print("%s: %d octets, %s: %d %s" % (name, len(wire), kind, code, reply.decode()), flush=True)
    s.quit()

threads = [threading.Thread(target=send, args=(name,)) for name in names]
for t in threads: t.start()
for t in threads: t.join()
PYTHON
send() { timeout 600 /usr/bin/python3 "$work/send.py" "$smtp" "$1" "$2" "$work/sent" "${@:3}" >"$work/send.log" 2>&1 || die "the client broke off"; }

# unchanged NAME finds the message in the mailbox and compares it with what was sent.
unchanged() {
	local received size
	received=$(grep -l -m 1 "^Subject: $1\$" "$work"/box/you/new/*) || die "$1 did not arrive"
	size=$(stat -c %s "$work/sent/$1")
	head -c "-$size" "$received" >"$work/front"
	[ "$(tail -c "$size" "$received" | sha256sum)" = "$(sha256sum <"$work/sent/$1")" ] || die "$1 was changed on its way"
	# In front of it is what the two relays and the mailbox have added, and nothing else.
	[ "$(grep -c '^DKIM-Signature:' "$work/front")" = 2 ] || die "$1 does not have two signatures in front"
	[ "$(grep -c '^Received:' "$work/front")" = 2 ] || die "$1 does not have two Received fields in front"
	! grep -v -E '^(DKIM-Signature|Received|Return-Path|X-Original-To|Delivered-To):|^[[:space:]]' "$work/front" || die "$1 has other fields in front"
	say "  $1: $size octets, sha256 $(sha256sum <"$work/sent/$1" | cut -c1-16)… as sent; $(wc -c <"$work/front") octets of trace and signatures in front"
}

accepted() { [ "$(grep -c ': 250 ' "$work/send.log")" = "$1" ] || die "not accepted: $(cat "$work/send.log")"; }

mkdir "$work/sent"
within 20 queue_is_empty
before=$(memory VmHWM)
send "$megabytes" base64 base64
accepted 1
within 300 mails "$work/box/you" 1
unchanged base64
send "$megabytes" 8bit eightbit
accepted 1
within 300 mails "$work/box/you" 2
unchanged eightbit
one=$(memory VmHWM)

send "$megabytes" base64 five-{1,2,3,4,5}
accepted 5
within 600 mails "$work/box/you" 7
for n in 1 2 3 4 5; do unchanged "five-$n"; done
five=$(memory VmHWM)
say "largest resident set: $before MiB before, $one MiB after one at a time, $five MiB after five at once (now $(memory VmRSS) MiB)"
[ $((one - before)) -le $grow_one ] || die "one message of $megabytes MB makes the server grow by $((one - before)) MiB, at most $grow_one"
[ $((five - before)) -le $grow_five ] || die "five messages of $megabytes MB make the server grow by $((five - before)) MiB, at most $grow_five"

stored() { [ "$(postroad --json queue counts | tr ',{' '\n\n' | sed -n 's/^"mails"://p')" = "$1" ]; }
within 30 stored 0
for kind in base64 8bit; do # base64 gives SIZE= and is refused at MAIL, 8bit does not and is refused at the final dot
	send 60 "$kind" "too-large-$kind"
	grep -q ': 552 5\.3\.4' "$work/send.log" || die "60 MB were not refused with 552 5.3.4: $(cat "$work/send.log")"
	say "  $(cat "$work/send.log")"
	within 30 queue_is_empty
	within 30 stored 0
done
mails "$work/box/you" 8 && die "the mailbox got a message too many"
last=$(memory VmHWM)
[ $((last - before)) -le $grow_five ] || die "what is refused makes the server grow by $((last - before)) MiB, at most $grow_five"
stop_server
say "large: $megabytes MB as base64 and as 8bit arrive octet for octet; largest resident set +$((one - before)) MiB for one at a time, +$((five - before)) MiB for five at once; 60 MB get 552 and leave nothing"
