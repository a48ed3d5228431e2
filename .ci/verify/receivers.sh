#!/bin/bash
# What we deliver is taken by mail servers that are not ours: Debian's Postfix, Exim and OpenSMTPD, each with STARTTLS. To each go plain and
# 8-bit messages, addresses outside of ASCII, a message of which success is to be reported, one of 5 MB, one with 30 recipients, many for
# one connection, and one for a recipient who is refused. What arrives is compared with what was sent, TLS is read from the Received field
# that the server wrote, and every notification is accounted for. Then the tests of delivery run, which have the rows of the requirements
# (E3 look-up, E4 dialogue, E5 TLS, E6 outcomes) in their names. Needs root.
#
#   .ci/verify/receivers.sh             everything
#   .ci/verify/receivers.sh postfix exim    only these servers, and no tests
source "$(dirname "$0")/lib.sh"
. .ci/verify/receivers-lib.sh
receivers_need
mtas=("$@")
[ $# -gt 0 ] || mtas=(postfix exim opensmtpd)

many=40 # messages for one connection
locals=(you rider jürgen)
for i in {1..30}; do locals+=("r$i"); done

build
free_ports smtp postfix exim opensmtpd
for local in "${locals[@]:2}"; do postfix_boxes+=", $local@box.example=$local/"; done
postfix_start "$postfix"
[[ " ${mtas[*]} " = *" exim "* ]] && exim_start "$exim" "${locals[@]}"
[[ " ${mtas[*]} " = *" opensmtpd "* ]] && opensmtpd_start "$opensmtpd" "${locals[@]}"

# A notification for the sender goes to Postfix, whoever refused the recipient.
cat >"$work/postroad.yaml" <<CONF
hostname: relay.sender.example
domain: sender.example
data_dir: $work/data
ingress: {listeners: [{address: "127.0.0.1:$smtp"}]}
signer: {missing_key: pass}
delivery:
  site_connections: 2
  routes:
    - {domains: [box.example, sender.example], via: "smtp:[127.0.0.1]:$postfix", tls: encrypt, allow_private: true}
    - {domains: [exim.example], via: "smtp:[127.0.0.1]:$exim", tls: encrypt, allow_private: true}
    - {domains: [opensmtpd.example], via: "smtp:[127.0.0.1]:$opensmtpd", tls: encrypt, allow_private: true}
log: {format: json, level: info}
CONF
serve

# extensions PORT says what a server offers after STARTTLS.
extensions() {
	python - "$1" <<'PYTHON'
import smtplib, ssl, sys
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
with smtplib.SMTP("127.0.0.1", int(sys.argv[1]), timeout=30) as c:
    c.ehlo("check.example")
    c.starttls(context=context)
    c.ehlo("check.example")
    print(" ".join(sorted(c.esmtp_features)))
PYTHON
}

# taken NAME DOMAIN BOX sends everything to a server and compares what arrives in the Maildirs below BOX.
taken() {
	timeout 900 /usr/bin/python3 .ci/verify/receivers.py "$1" "$2" "127.0.0.1:$smtp" "$3" "$work/box/rider" "$many" "$(extensions "${!1}")" >"$work/$1-taken.log" 2>&1 || {
		cat "$work/$1-taken.log" >&2
		die "$1 did not get what was sent"
	}
	sed "s/^/  /" "$work/$1-taken.log"
}

# connections NAME counts those that a server has had.
connections() {
	case $1 in
	postfix) grep -c 'smtpd\[[0-9]*\]: connect from' "$work/postfix.log" ;;
	exim) cat "$work"/exim/var/log/exim4/mainlog | grep -c 'SMTP connection from .* (TCP/IP' ;;
	opensmtpd) grep -c ' smtp connected ' "$work/opensmtpd.log" ;;
	esac
}

for mta in "${mtas[@]}"; do
	say "$mta offers: $(extensions "${!mta}")"
	before=$(connections "$mta")
	case $mta in
	postfix) taken postfix box.example "$work/box" ;;
	*) taken "$mta" "$mta.example" "$work/$mta/box" ;;
	esac
	used=$(($(connections "$mta") - before))
	say "  on $used connections"
	[ "$used" -le 4 ] || die "$mta: $used connections for messages that two were to carry" # also a refused message may end one
done
within 60 queue_is_empty
stop_server
[ $# -eq 0 ] || exit 0

timeout 900 go test -count=1 -json ./delivery/... >"$work/tests.json" 2>"$work/tests.log" || {
	sed -n 's/.*"Action":"fail".*"Package":"\([^"]*\)","Test":"\([^"]*\)".*/\1 \2/p' "$work/tests.json" >>"$work/tests.log"
	die "tests of delivery"
}
rows=$(sed -n 's/.*"Action":"pass".*"Test":"\([^"]*\)".*/\1/p' "$work/tests.json" | grep -o 'E[3-6][-_][0-9]*' | sort -u | wc -l)
passed=$(grep -c '"Action":"pass".*"Test":' "$work/tests.json")
say "receivers: Postfix, Exim and OpenSMTPD took everything over TLS, unchanged, and what they refused came back once; $passed tests of delivery, $rows rows named"
