# Shared by the checks that send with programs that are not ours: source it after lib.sh and call clients_need first. Every send_… takes
#
#	HOST PORT USER PASSWORD CA FROM TO FILE
#
# logs in over TLS, verifies the server's certificate for HOST against the PEM file CA, sends FILE (a message with LF line ends), and
# succeeds when the server has taken it; what was said is in $work/<program>.log. A program with a queue of its own (Postfix, Exim,
# nullmailer) gets 180 s until that queue is empty. Two variables choose the rest, for one call or for all:
#
#	client_tls=starttls|implicit    (starttls)
#	client_auth=PLAIN|LOGIN|SCRAM-SHA-256    (PLAIN; of these programs, as Debian builds them, msmtp and Postfix have SCRAM)
client_tls=${client_tls:-starttls}
client_auth=${client_auth:-PLAIN}
. .ci/verify/cage-lib.sh

# clients_need installs the programs. Exim and nullmailer would take the place of Postfix: they run from cages instead.
clients_need() { need curl openssl swaks libnet-ssleay-perl msmtp postfix libsasl2-modules python3-minimal; }

is_implicit() { [ "$client_tls" = implicit ]; }

send_swaks() {
	local tls=--tls
	is_implicit && tls=--tls-on-connect
	timeout 180 swaks --timeout 120 --server "$1" --port "$2" $tls --tls-verify --tls-ca-path "$5" --tls-sni "$1" \
		--auth "$client_auth" --auth-user "$3" --auth-password "$4" --auth-hide-password \
		--from "$6" --to "$7" --data "$(<"$8")" >"$work/swaks.log" 2>&1 # without the last LF: swaks adds one
}

send_curl() {
	local scheme=smtp
	is_implicit && scheme=smtps
	timeout 180 curl -sS -v --url "$scheme://$1:$2/client.sender.example" --ssl-reqd --cacert "$5" --user "$3:$4" \
		--login-options "AUTH=$client_auth" --mail-from "$6" --mail-rcpt "$7" --crlf --upload-file "$8" >"$work/curl.log" 2>&1
}

send_python() {
	timeout 180 /usr/bin/python3 - "$client_tls" "$client_auth" "$@" >"$work/python.log" 2>&1 <<'PYTHON'
import email, email.policy, smtplib, ssl, sys
tls, mechanism, host, port, user, password, ca, sender, to, path = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
if tls == "implicit":
    client = smtplib.SMTP_SSL(host, int(port), timeout=120, context=context)
else:
    client = smtplib.SMTP(host, int(port), timeout=120)
with client:
    client.set_debuglevel(1)
    client.ehlo("client.sender.example")
    if tls != "implicit":
        client.starttls(context=context)
        client.ehlo("client.sender.example")
    client.user, client.password = user, password
    client.auth(mechanism, {"PLAIN": client.auth_plain, "LOGIN": client.auth_login}[mechanism])
    # Not client.sendmail(…, bytes): that would leave LF as it is, which a strict server refuses.
    client.send_message(email.message_from_binary_file(open(path, "rb"), policy=email.policy.default), sender, [to])
PYTHON
}

send_msmtp() {
	local starttls=on
	is_implicit && starttls=off
	(
		umask 077
		cat >"$work/msmtp.conf" <<-CONF
			account default
			host $1
			port $2
			domain client.sender.example
			timeout 120
			tls on
			tls_starttls $starttls
			tls_trust_file $5
			auth ${client_auth,,}
			user $3
			password $4
			from $6
		CONF
	)
	timeout 180 msmtp -v -C "$work/msmtp.conf" -- "$7" <"$8" >"$work/msmtp.log" 2>&1
}

# send_postfix runs Postfix as a null client, with directories of its own, until its queue is empty.
send_postfix() {
	local dir=$work/postfix-client host=$1 port=$2 user=$3 password=$4 ca=$5 wrapper=no
	is_implicit && wrapper=yes
	rm -rf "$dir"
	mkdir -p "$dir"/{etc,spool,data}
	chown postfix "$dir/data"
	cat >"$dir/etc/main.cf" <<-CONF
		compatibility_level = 3.6
		queue_directory = $dir/spool
		data_directory = $dir/data
		command_directory = $(postconf -d -h command_directory)
		daemon_directory = $(postconf -d -h daemon_directory)
		shlib_directory = $(postconf -d -h shlib_directory)
		maillog_file = $work/postfix-client.log
		maillog_file_prefixes = $work
		myhostname = client.sender.example
		inet_interfaces = loopback-only
		inet_protocols = ipv4
		mydestination =
		local_transport = error:no local delivery
		alias_maps =
		alias_database =
		smtp_host_lookup = native
		relayhost = [$host]:$port
		smtp_sasl_auth_enable = yes
		smtp_sasl_password_maps = texthash:$dir/etc/password
		smtp_sasl_security_options = noanonymous
		smtp_sasl_mechanism_filter = $client_auth
		smtp_tls_security_level = verify
		smtp_tls_verify_cert_match = hostname
		smtp_tls_CAfile = $ca
		smtp_tls_wrappermode = $wrapper
		smtp_tls_loglevel = 1
	CONF
	(umask 077 && printf '[%s]:%s %s:%s\n' "$host" "$port" "$user" "$password" >"$dir/etc/password")
	cat >"$dir/etc/master.cf" <<-CONF
		pickup unix n - n 1 1 pickup
		cleanup unix n - n - 0 cleanup
		qmgr unix n - n 1 1 qmgr
		tlsmgr unix - - n 1000? 1 tlsmgr
		rewrite unix - - n - - trivial-rewrite
		bounce unix - - n - 0 bounce
		defer unix - - n - 0 bounce
		error unix - - n - - error
		retry unix - - n - - error
		smtp unix - - n - - smtp
		proxymap unix - - n - - proxymap
		postlog unix-dgram n - n - 1 postlogd
	CONF
	: >"$work/postfix-client.log"
	timeout 180 postfix -c "$dir/etc" start >"$work/postfix-client-start.log" 2>&1 || return 1
	postfixes+=("$dir/etc")
	timeout 180 sendmail -C "$dir/etc" -i -f "$6" -- "$7" <"$8" >>"$work/postfix-client.log" 2>&1
	local end=$((SECONDS + 180))
	until grep -q 'status=\(sent\|deferred\|bounced\)' "$work/postfix-client.log" || [ $SECONDS -ge $end ]; do sleep 0.1; done
	timeout 180 postfix -c "$dir/etc" stop >>"$work/postfix-client-start.log" 2>&1
	grep -q 'status=sent' "$work/postfix-client.log"
}

# send_exim runs Exim in a cage: it delivers what it is given at once.
send_exim() {
	local dir=$work/exim protocol=smtp
	is_implicit && protocol=smtps
	if [ ! -d "$dir" ]; then
		cage exim exim4-daemon-light
		printf 'root:x:0:0::/root:/bin/sh\nmail:x:8:8::/:/bin/sh\nDebian-exim:x:64004:64004::/var/spool/exim4:/bin/false\n' >"$dir/etc/passwd"
		printf 'root:x:0:\nmail:x:8:\nDebian-exim:x:64004:\n' >"$dir/etc/group"
		mkdir -p "$dir"/etc/exim4 "$dir"/var/{spool,log}/exim4
		chown 64004:64004 "$dir"/var/{spool,log}/exim4
	fi
	install -m 644 "$5" "$dir/etc/ca.pem"
	cat >"$dir/etc/exim4/exim4.conf" <<-CONF
		exim_path = /usr/sbin/exim4
		spool_directory = /var/spool/exim4
		log_file_path = /var/log/exim4/%slog
		log_selector = +smtp_confirmation
		primary_hostname = client.sender.example
		keep_environment =
		begin routers
		relay:
		  driver = manualroute
		  route_list = * $1 byname
		  ignore_target_hosts = ::1
		  self = send
		  transport = relay
		begin transports
		relay:
		  driver = smtp
		  protocol = $protocol
		  port = $2
		  allow_localhost
		  hosts_require_tls = *
		  hosts_require_auth = *
		  tls_sni = $1
		  tls_verify_certificates = /etc/ca.pem
		  tls_verify_hosts = *
		  tls_verify_cert_hostnames = *
		begin retry
		* * F,1h,1m
		begin authenticators
	CONF
	case $client_auth in
	PLAIN) printf 'plain:\n  driver = plaintext\n  public_name = PLAIN\n  client_send = ^%s^%s\n' "$3" "$4" ;;
	LOGIN) printf 'login:\n  driver = plaintext\n  public_name = LOGIN\n  client_send = <; ; %s ; %s\n' "$3" "$4" ;;
	esac >>"$dir/etc/exim4/exim4.conf"
	rm -f "$dir"/var/log/exim4/*
	timeout 180 chroot "$dir" /usr/sbin/exim4 -odf -oi -f "$6" -- "$7" <"$8" >"$work/exim.log" 2>&1
	cat "$dir"/var/log/exim4/* >>"$work/exim.log"
	grep -q ' => .* A=.* C="250' "$work/exim.log" && grep -q ' Completed$' "$work/exim.log"
}

# send_nullmailer runs nullmailer in a cage: its queue is run once.
send_nullmailer() {
	local dir=$work/nullmailer tls=starttls auth=
	is_implicit && tls=tls
	[ "$client_auth" = LOGIN ] && auth=auth-login
	if [ ! -d "$dir" ]; then
		cage nullmailer nullmailer
		printf 'root:x:0:0::/root:/bin/sh\nmail:x:8:8::/:/bin/sh\n' >"$dir/etc/passwd"
		printf 'root:x:0:\nmail:x:8:\n' >"$dir/etc/group"
		mkdir -p "$dir"/etc/nullmailer "$dir"/var/spool/nullmailer/{queue,tmp,failed}
		mkfifo "$dir/var/spool/nullmailer/trigger"
		echo client.sender.example >"$dir/etc/nullmailer/me"
		echo 0 >"$dir/etc/nullmailer/pausetime"
		echo 120 >"$dir/etc/nullmailer/sendtimeout"
		chown -R 8:8 "$dir/var/spool/nullmailer"
	fi
	install -m 644 "$5" "$dir/etc/ca.pem"
	(umask 077 && printf '%s smtp port=%s %s x509cafile=/etc/ca.pem user=%s pass=%s %s\n' "$1" "$2" $tls "$3" "$4" "$auth" >"$dir/etc/nullmailer/remotes")
	{
		timeout 180 chroot "$dir" /usr/bin/nullmailer-inject -f "$6" "$7" <"$8" && timeout 180 chroot "$dir" /usr/sbin/nullmailer-send
	} >"$work/nullmailer.log" 2>&1
	[ -z "$(find "$dir"/var/spool/nullmailer/{queue,tmp,failed} -type f)" ] && grep -q 'Delivery complete\|Sent file' "$work/nullmailer.log"
}
