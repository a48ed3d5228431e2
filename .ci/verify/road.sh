#!/bin/bash
# The whole road with programs that are not ours. swaks sends to `postroad serve`, which signs with two keys and relays to Debian's
# Postfix over TLS, which puts the message into a mailbox. There OpenDKIM and python3-dkim verify the signatures, with DNS records that
# openssl made. A recipient that Postfix refuses comes back as a bounce. `postroad trace` tells both stories. Needs root (Postfix does).
source "$(dirname "$0")/lib.sh"
. .ci/verify/dkim-lib.sh
need curl swaks postfix openssl
dkim_need

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
  routes: [{domains: [box.example, sender.example], via: "smtp:[127.0.0.1]:$mail", allow_private: true}]
log: {format: json}
CONF
serve
say "postroad config check: $(cat "$work/check.log")"

# send RECIPIENT sends a message and sets $id.
send() {
	timeout 180 swaks --timeout 120 --server "127.0.0.1:$smtp" --from rider@sender.example --to "$1" --header "Subject: road to $1" \
		--body 'Horses are changed at every station.' >"$work/swaks.log" 2>&1 || die "swaks: the message was not accepted"
	id=$(sed -n 's/^<.*  250 .*queued as \([0-9a-z]\{27\}\).*/\1/p' "$work/swaks.log")
	[ ${#id} -eq 27 ] || die "swaks got no id in the reply to the final dot"
}

# traced ID WORD… tells whether the story of a message has all the words; it is kept in $work/trace.log.
traced() {
	local word
	postroad trace "$1" >"$work/trace.log" 2>&1 || return 1
	shift
	for word in "$@"; do
		grep -q -- "$word" "$work/trace.log" || return 1
	done
}

send you@box.example
within 60 mails "$work/box/you" 1
message=$(find "$work/box/you/new" -type f)
grep -q '(using TLSv1.[23] with cipher' "$message" || die "Postfix did not get the message over TLS"
grep -q "by relay.sender.example.*\$\|id $id" "$message" || die "the Received field does not have the id"
say "delivered to Postfix over $(grep -o 'TLSv1\.[23]' "$message" | head -n 1); signatures:"
dkim_verify "$message" || die "the signatures of the message"
within 20 traced "$id" ' accepted .*<rider@sender.example> to <you@box.example>' ' signed ' \
	' delivered .*<you@box.example> by .*127.0.0.1.* TLS1.* 250 2\.' ' finished '
say "postroad trace $id:"
sed 's/^/  /' "$work/trace.log"

send nobody@box.example
within 60 mails "$work/box/rider" 1
bounce=$(find "$work/box/rider/new" -type f)
python - "$bounce" <<'PYTHON' || die "the bounce is not what RFC 3464 wants"
import email, email.policy, sys
m = email.message_from_binary_file(open(sys.argv[1], "rb"), policy=email.policy.default)
assert m["Return-Path"] in ("<>", None) and m.get_content_type() == "multipart/report", m.get_content_type()
assert m.get_param("report-type") == "delivery-status"
text, status, original = m.get_payload()
assert text.get_content_type() == "text/plain" and status.get_content_type() == "message/delivery-status"
assert original.get_content_type() in ("message/rfc822", "text/rfc822-headers", "message/rfc822-headers")
of_message, recipient = status.get_payload()[:2]
assert of_message["Reporting-MTA"] == "dns; relay.sender.example" or of_message["Reporting-MTA"] == "dns;relay.sender.example", of_message["Reporting-MTA"]
assert "nobody@box.example" in recipient["Final-Recipient"] and recipient["Action"] == "failed" and recipient["Status"] == "5.1.1", recipient.as_string()
assert "550" in recipient["Diagnostic-Code"]
assert "road to nobody@box.example" in original.as_string()
print("bounce from %s: %s, %s" % (m["From"], recipient["Status"], recipient["Diagnostic-Code"]))
PYTHON
say "signatures of the bounce:"
dkim_verify "$bounce" || die "the signatures of the bounce"
within 20 traced "$id" ' accepted ' ' bounced .*<nobody@box.example>.* 550 5.1.1' ' notified ' ' finished '
say "postroad trace $id:"
sed 's/^/  /' "$work/trace.log"

within 20 queue_is_empty
stop_server
say "road: delivered over TLS, two signatures good for two verifiers, traced; a refused recipient came back as a signed bounce; the queue is empty"
