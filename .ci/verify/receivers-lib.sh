# Shared by the checks that deliver to mail servers which are not ours: source it after lib.sh. Postfix is in lib.sh; Exim and OpenSMTPD
# would take its place as packages, so they run from cages. Each takes mail for box.example, sender.example and its own domain for the
# local parts that are given, into Maildirs below $work/NAME/box, refuses every other recipient, and offers STARTTLS.
. .ci/verify/cage-lib.sh

receivers_need() { need curl openssl postfix python3-minimal; }

# cage_users NAME USER… makes the accounts of a cage, from number 64100 on.
cage_users() {
	local dir=$work/$1 number=64100 user
	printf 'root:x:0:0::/root:/bin/sh\n' >"$dir/etc/passwd"
	printf 'root:x:0:\n' >"$dir/etc/group"
	shift
	for user in "$@"; do
		printf '%s:x:%d:%d::/var/empty:/bin/false\n' "$user" $number $number >>"$dir/etc/passwd"
		printf '%s:x:%d:\n' "$user" $number >>"$dir/etc/group"
		number=$((number + 1))
	done
}

# cage_certificate NAME HOST
cage_certificate() {
	openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj "/CN=$2" -keyout "$work/$1/etc/key.pem" -out "$work/$1/etc/cert.pem" 2>/dev/null
}

# exim_start PORT LOCAL… runs Debian's Exim.
exim_start() {
	local dir=$work/exim port=$1 local
	shift
	cage exim exim4-daemon-light
	cage_users exim Debian-exim mail
	cage_certificate exim mx.exim.example
	mkdir -p "$dir"/etc/exim4 "$dir"/var/{spool,log}/exim4 "$dir/box"
	chown 64100:64100 "$dir"/var/{spool,log}/exim4 "$dir/etc/key.pem" "$dir/box"
	for local in "$@"; do printf '%s: %s\n' "$local" "$local"; done >"$dir/etc/locals" # what was looked up is a path that Exim trusts
	cat >"$dir/etc/exim4/exim4.conf" <<-'CONF'
		exim_path = /usr/sbin/exim4
		spool_directory = /var/spool/exim4
		log_file_path = /var/log/exim4/%slog
		log_selector = +received_recipients +smtp_connection
		primary_hostname = mx.exim.example
		domainlist locals = box.example : sender.example : exim.example
		keep_environment =
		host_lookup =
		rfc1413_query_timeout = 0s
		message_size_limit = 0
		tls_advertise_hosts = *
		tls_certificate = /etc/cert.pem
		tls_privatekey = /etc/key.pem
		dsn_advertise_hosts = *
		smtputf8_advertise_hosts = *
		smtp_accept_queue_per_connection = 0
		acl_smtp_rcpt = rcpt
		acl_smtp_data = accept
		never_users =
		begin acl
		rcpt:
		  require message = 5.1.1 no such box here
		          verify = recipient
		  accept
		begin routers
		box:
		  driver = accept
		  domains = +locals
		  address_data = ${lookup {$local_part} lsearch {/etc/locals} {$value}fail}
		  transport = box
		begin transports
		box:
		  driver = appendfile
		  directory = /box/$address_data
		  maildir_format
		  create_directory
		  user = Debian-exim
		  group = Debian-exim
		  return_path_add
		  delivery_date_add = false
	CONF
	sed -i "1i local_interfaces = 127.0.0.1\ndaemon_smtp_ports = $port" "$dir/etc/exim4/exim4.conf"
	chroot "$dir" /usr/sbin/exim4 -bdf >"$work/exim-start.log" 2>&1 &
	pids+=($!)
	within 30 answers "$port"
}

# opensmtpd_start PORT LOCAL… runs Debian's OpenSMTPD; in Debian 12 that of its backports, since 6.8 cannot do TLS with OpenSSL 3
# (github.com/OpenSMTPD/OpenSMTPD, issue 1171).
opensmtpd_start() {
	local dir=$work/opensmtpd port=$1 local suite=()
	shift
	grep -q '^VERSION_CODENAME=bookworm' /etc/os-release && suite=(bookworm-backports)
	cage opensmtpd opensmtpd "${suite[@]}"
	cage_users opensmtpd opensmtpd opensmtpq box
	cage_certificate opensmtpd mx.opensmtpd.example
	chmod 600 "$dir/etc/key.pem"
	mkdir -p "$dir"/var/lib/opensmtpd/empty "$dir"/var/{run,empty,spool/smtpd} "$dir"/{bin,box}
	cp -L /bin/sh "$dir/bin/sh"
	chown 64102:64102 "$dir/box"
	chmod 711 "$dir/var/spool/smtpd"
	: >"$dir/etc/resolv.conf"
	mkdir -p "$dir/etc/ssl/certs"
	cp "$dir/etc/cert.pem" "$dir/etc/ssl/certs/ca-certificates.crt" # it does not start without
	mknod -m 666 "$dir/dev/urandom" c 1 9
	for local in "$@"; do
		for domain in box.example sender.example opensmtpd.example; do printf '%s@%s\tbox\n' "$local" $domain; done
	done >"$dir/etc/locals"
	cat >"$dir/etc/smtpd.conf" <<-CONF
		pki mx.opensmtpd.example cert "/etc/cert.pem"
		pki mx.opensmtpd.example key "/etc/key.pem"
		table locals file:/etc/locals
		smtp max-message-size 100M
		listen on 127.0.0.1 port $port hostname mx.opensmtpd.example tls pki mx.opensmtpd.example
		action "box" maildir "/box/%{rcpt.user}" virtual <locals>
		match from any for domain { box.example sender.example opensmtpd.example } action "box"
	CONF
	chroot "$dir" /usr/sbin/smtpd -d >"$work/opensmtpd.log" 2>&1 &
	pids+=($!)
	within 30 answers "$port"
}
