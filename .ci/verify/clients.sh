#!/bin/bash
# The mail programs of a fleet send through `postroad serve`, each as its manual says: swaks, curl, Python's smtplib, msmtp, Postfix as a
# null client, Exim and nullmailer, all of Debian's packages, with accounts, over STARTTLS and implicit TLS, by PLAIN, LOGIN and
# SCRAM-SHA-256. Every message arrives once and whole; wrong passwords, a certificate that is not the server's and a client that does not
# log in come to nothing. Needs root.
source "$(dirname "$0")/lib.sh"
source .ci/verify/fleet-lib.sh
source .ci/verify/clients-lib.sh
clients_need

build
authority
(
	cd "$work/tls"
	umask 077
	openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=relay.sender.example -keyout ec-key.pem -out request.pem
	openssl x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out ec-cert.pem \
		-extfile <(printf 'subjectAltName=DNS:relay.sender.example,DNS:localhost,IP:127.0.0.1')
	openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj '/CN=Stranger' -keyout stranger.key -out stranger.pem
	chmod 644 ec-cert.pem stranger.pem
) >>"$work/openssl.log" 2>&1 || die "openssl makes no certificate"

keys sender.example
free_ports starttls implicit mail
postfix_start "$mail"
listener() {
	printf '    - {address: "127.0.0.1:%s", tls: %s, trusted_networks: [], auth: required, cert: %s, key: %s, certificates: [{cert: %s, key: %s}]}\n' \
		"$1" "$2" "$work/tls/cert.pem" "$work/tls/key.pem" "$work/tls/ec-cert.pem" "$work/tls/ec-key.pem"
}
cat >"$work/postroad.yaml" <<CONF
hostname: relay.sender.example
data_dir: $work/data
secrets: {dir: $work/secrets}
ingress:
  listeners:
$(listener "$starttls" starttls)
$(listener "$implicit" implicit)
delivery: {routes: [{domains: [box.example], via: "smtp:[127.0.0.1]:$mail", allow_private: true}]}
log: {format: json}
CONF
mkdir -p "$work/secrets/clients"
password=$(client_add host --class host)
[ ${#password} -ge 16 ] || die "postroad client add prints no password"
serve

# message SUBJECT makes a message in $work/message.
message() {
	cat >"$work/message" <<-MESSAGE
		From: Rider <rider@sender.example>
		To: you@box.example
		Subject: $1
		Date: $(date -R)
		Message-ID: <$RANDOM$RANDOM.$$@sender.example>
		MIME-Version: 1.0
		Content-Type: text/plain; charset=utf-8
		Content-Transfer-Encoding: 8bit

		.a line that begins with a dot
		.
		Grüße von der Poststraße
		$(printf 'x%.0s' {1..900})
	MESSAGE
}

# arrived SUBJECT sets $file to the message that came, once.
arrived() {
	local found
	found=$(grep -lx "Subject: $1" "$work"/box/you/new/* 2>/dev/null) || return 1
	[ "$(wc -l <<<"$found")" = 1 ] || die "$1 came more than once"
	file=$found
}

sent=0
for program in swaks curl python msmtp postfix exim nullmailer; do
	for mode in starttls:PLAIN starttls:LOGIN starttls:SCRAM-SHA-256 implicit:PLAIN; do
		client_tls=${mode%:*} client_auth=${mode#*:}
		[[ $client_auth == SCRAM* && $program != msmtp && $program != postfix ]] && continue
		message "$program $mode"
		"send_$program" localhost "${!client_tls}" host "$password" "$work/tls/ca.pem" rider@sender.example you@box.example "$work/message" ||
			die "$program does not send by $mode"
		within 30 arrived "$program $mode"
		cmp <(sed '1,/^$/d' "$work/message") <(sed '1,/^$/d' "$file") || die "$program $mode: the body has changed"
		grep -q 'with [A-Z0-9]*ESMTPSA' "$file" || die "$program $mode: the Received field does not say that the client logged in over TLS"
		sent=$((sent + 1))
	done
	client_tls=starttls client_auth=PLAIN
	say "  $program: $(grep -cl "^Subject: $program " "$work"/box/you/new/* | wc -l) messages"
done

# What must not work. The queueing programs would try for long; they use the same libraries.
message "never"
for program in swaks curl python msmtp; do
	try=("send_$program" localhost "$starttls" host)
	! "${try[@]}" "wrong$password" "$work/tls/ca.pem" rider@sender.example you@box.example "$work/message" || die "$program sends with a wrong password"
	! "${try[@]}" "$password" "$work/tls/stranger.pem" rider@sender.example you@box.example "$work/message" || die "$program does not verify: it shows nothing"
done
! timeout 180 curl -sS -v --url "smtp://localhost:$starttls" --ssl-reqd --cacert "$work/tls/ca.pem" --mail-from rider@sender.example \
	--mail-rcpt you@box.example --crlf --upload-file "$work/message" >"$work/anonymous.log" 2>&1 || die "the server takes mail from a client that did not log in"
grep -q '< 530 5.7.0' "$work/anonymous.log" || die "a client that did not log in does not get 530 5.7.0"
! arrived never || die "a message came that nobody was to take"

# Each client gets a certificate that it can verify.
signature() {
	openssl s_client -connect "localhost:$starttls" -starttls smtp -CAfile "$work/tls/ca.pem" -verify_return_error "$@" </dev/null 2>>"$work/openssl.log" |
		sed -n 's/^Peer signature type: //p'
}
[ "$(signature)" = ECDSA ] || die "a client that knows ECDSA gets $(signature)"
[ "$(signature -sigalgs RSA-PSS+SHA256)" = RSA-PSS ] || die "a client that knows RSA only gets $(signature -sigalgs RSA-PSS+SHA256)"

# A certificate is replaced, first its key and then itself; the server goes on, and shows the new one.
issue() {
	(
		cd "$work/tls"
		umask 077
		openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=relay.sender.example -keyout new-key.pem -out request.pem
		openssl x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out new-cert.pem \
			-extfile <(printf 'subjectAltName=DNS:relay.sender.example,DNS:localhost,IP:127.0.0.1')
		mv new-key.pem ec-key.pem
		sleep 0.5
		mv new-cert.pem ec-cert.pem
	) >>"$work/openssl.log" 2>&1
}
serial() { openssl x509 -noout -serial; }
shows_it() {
	[ "$(openssl s_client -connect "localhost:$starttls" -starttls smtp </dev/null 2>/dev/null | serial)" = "$(serial <"$work/tls/ec-cert.pem")" ]
}
shows_it || die "the server does not show its certificate"
before=$(serial <"$work/tls/ec-cert.pem")
issue
[ "$before" != "$(serial <"$work/tls/ec-cert.pem")" ] || die "the certificate was not replaced: it shows nothing"
within 20 shows_it
say "  a replaced certificate is in use, without a restart"

within 20 queue_is_empty
stop_server
say "clients: $sent messages of 7 programs arrived once and whole; wrong passwords, certificates and strangers came to nothing"
