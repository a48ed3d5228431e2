# Shared by the checks in this directory: source it. It makes a temporary directory, $work, and when the check ends it stops what the
# check has started and removes the directory. A check that fails shows the ends of the logs, then what it was that failed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

work=$(mktemp -d)
chmod 755 "$work" # Postfix does not run as root
server=           # process id of postroad, when it runs
pids=()           # of everything else
postfixes=()      # configuration directories of running instances
failure=          # why the check ends

say() { printf '%s\n' "$*"; }
die() {
	failure="NOT SHOWN: $*"
	say "$failure" >&2
	exit 1
}

finish() {
	local status=$? pid dir log
	trap '' INT TERM
	set +e
	for dir in "${postfixes[@]}"; do timeout 180 postfix -c "$dir" stop >/dev/null 2>&1; done
	for pid in $server "${pids[@]}"; do kill "$pid" 2>/dev/null; done
	for pid in $server "${pids[@]}"; do
		wait_end "$pid" 20 || kill -KILL "$pid" 2>/dev/null
		wait "$pid" 2>/dev/null
	done
	if [ $status -ne 0 ]; then
		for log in "$work"/*.log; do
			[ -s "$log" ] && printf -- '--- end of %s\n%s\n' "${log##*/}" "$(tail -n 25 "$log" | cut -c1-400)" >&2
		done
		[ -s "$work/verdict" ] && tail -n 25 "$work/verdict" | cut -c1-300 >&2
		printf '%s\nFAILED %s\n' "${failure:-a command ended with status $status}" "${0##*/}" >&2
	fi
	rm -rf "$work"
	exit $status
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# apt is apt-get that waits for another one and tries again when an archive does not answer.
apt() { apt-get -q -o DPkg::Lock::Timeout=600 -o Acquire::Retries=5 "$@"; }

# need PACKAGE… installs what is missing, without starting any service; checks that run beside each other do it in turns.
need() {
	local package missing=() lock policy=/usr/sbin/policy-rc.d
	for package in "$@"; do
		[ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
	done
	[ ${#missing[@]} -eq 0 ] && return
	[ "$(id -u)" = 0 ] || die "run it as root, or install: ${missing[*]}"
	exec {lock}<"${BASH_SOURCE[0]}"
	flock "$lock"
	[ -e $policy ] && policy=
	[ -n "$policy" ] && printf '#!/bin/sh\nexit 101\n' >$policy && chmod 755 $policy
	export DEBIAN_FRONTEND=noninteractive
	if ! { apt update && apt install -y --no-install-recommends "${missing[@]}"; } >"$work/apt.log" 2>&1; then
		[ -n "$policy" ] && rm -f $policy
		die "apt-get cannot install ${missing[*]}"
	fi
	[ -z "$policy" ] || rm -f $policy
	exec {lock}<&-
}

# python runs Debian's own Python, which has Debian's modules.
python() { /usr/bin/python3 "$@"; }

# free_ports NAME… sets each variable to a port that nobody uses. None of them is one that the system gives to clients, and until this check
# and all that it has started have ended no other check gets it: a lock says so.
free_ports() {
	local name port lock dir=${TMPDIR:-/tmp}/postroad-ports
	mkdir -p -m 1777 "$dir"
	for name in "$@"; do
		while :; do
			port=$((10000 + RANDOM % 20000))
			exec {lock}>>"$dir/$port"
			if flock -n "$lock" && ! is_used "$port"; then break; fi
			exec {lock}>&-
		done
		printf -v "${name?}" %s "$port"
	done
}

# is_used PORT tells whether a socket of this machine has that port.
is_used() {
	local hex file
	hex=$(printf %04X "$1")
	for file in /proc/net/{tcp,tcp6,udp,udp6}; do
		[ ! -e "$file" ] || ! grep -q "^ *[0-9]*: [0-9A-F]*:$hex " "$file" || return 0
	done
	return 1
}

# within SECONDS COMMAND… repeats the command until it succeeds. A busy machine gets two minutes where a quiet one needs seconds.
within() {
	local seconds=$(($1 > 120 ? $1 : 120))
	local end=$((SECONDS + seconds))
	shift
	until "$@" >/dev/null 2>&1; do
		[ $SECONDS -lt $end ] || die "not within $seconds s: $*"
		sleep 0.1
	done
}

# wait_end PID SECONDS waits until a process has ended.
wait_end() {
	local end=$((SECONDS + $2))
	while kill -0 "$1" 2>/dev/null; do
		[ $SECONDS -lt $end ] || return 1
		sleep 0.1
	done
}

build() { go build -o "$work/postroad" ./cmd/postroad; }

# postroad COMMAND… asks the running server.
postroad() { timeout 300 "$work/postroad" -c "$work/postroad.yaml" "$@"; }

# serve checks $work/postroad.yaml, starts the server and waits until it is ready.
serve() {
	postroad config check >"$work/check.log" 2>&1 || die "postroad config check finds faults"
	"$work/postroad" serve -c "$work/postroad.yaml" 2>>"$work/serve.log" &
	server=$!
	within 300 is_ready
}

is_ready() {
	kill -0 "$server" 2>/dev/null || die "postroad serve has ended"
	curl -sf -m 30 --unix-socket "$work/data/ops.sock" http://postroad/readyz
}

# stop_server ends the server in order.
stop_server() {
	local pid=$server
	kill "$pid"
	wait_end "$pid" 300 || die "postroad does not stop within 300 s"
	server=
	wait "$pid" || die "postroad ended with status $? when it was to stop"
}

# queue_is_empty within a moment: what was delivered leaves the queue right after the reply.
queue_is_empty() { [ -z "$(postroad --json queue list)" ]; }

# memory FIELD is a size from the server's /proc/PID/status, in MiB.
memory() { awk -v field="$1:" '$1 == field {print int($2 / 1024)}' "/proc/$server/status"; }

# keys DOMAIN makes an RSA and an Ed25519 key with openssl, and the DNS records of their public halves in $work/records.
keys() {
	local dir=$work/secrets/dkim/$1
	mkdir -p "$dir"
	(
		umask 077
		openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out "$dir/rsa.pem" 2>/dev/null
		openssl genpkey -algorithm ED25519 -out "$dir/ed25519.pem"
	)
	{
		printf 'rsa._domainkey.%s v=DKIM1; k=rsa; p=%s\n' "$1" \
			"$(openssl pkey -in "$dir/rsa.pem" -pubout -outform DER | base64 -w0)"
		printf 'ed25519._domainkey.%s v=DKIM1; k=ed25519; p=%s\n' "$1" \
			"$(openssl pkey -in "$dir/ed25519.pem" -pubout -outform DER | tail -c 32 | base64 -w0)" # RFC 8463 §4: the bare key
	} >>"$work/records"
}

# postfix_start PORT runs Debian's Postfix with directories of its own. It takes mail for you@box.example and rider@sender.example into
# the Maildirs $work/box/you and $work/box/rider, and for who else is in $postfix_boxes (", address=directory/" for each); it refuses every
# other recipient with 550, and offers STARTTLS. $postfix_settings are further lines of main.cf: what they say comes last.
postfix_boxes=
postfix_settings=
postfix_start() {
	local dir=$work/postfix daemons
	daemons=$(postconf -d -h daemon_directory)
	mkdir -p "$dir"/{etc,spool,data} "$work/box"
	chown postfix "$dir/data" "$work/box"
	openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=mx.box.example -keyout "$dir/etc/key.pem" -out "$dir/etc/cert.pem" 2>/dev/null
	cat >"$dir/etc/main.cf" <<-CONF
		compatibility_level = 3.6
		queue_directory = $dir/spool
		data_directory = $dir/data
		command_directory = $(postconf -d -h command_directory)
		daemon_directory = $daemons
		shlib_directory = $(postconf -d -h shlib_directory)
		maillog_file = $work/postfix.log
		maillog_file_prefixes = $work
		myhostname = mx.box.example
		inet_interfaces = 127.0.0.1
		inet_protocols = ipv4
		mynetworks = 127.0.0.0/8
		mydestination =
		alias_maps =
		alias_database =
		virtual_mailbox_domains = box.example sender.example
		virtual_mailbox_base = $work/box
		virtual_mailbox_maps = inline:{you@box.example=you/, rider@sender.example=rider/$postfix_boxes}
		virtual_uid_maps = static:$(id -u postfix)
		virtual_gid_maps = static:$(id -g postfix)
		message_size_limit = 0
		mailbox_size_limit = 0
		virtual_mailbox_limit = 0
		smtpd_tls_security_level = may
		smtpd_tls_cert_file = $dir/etc/cert.pem
		smtpd_tls_key_file = $dir/etc/key.pem
		smtpd_tls_received_header = yes
	CONF
	printf '%s\n' "$postfix_settings" >>"$dir/etc/main.cf"
	cat >"$dir/etc/master.cf" <<-CONF
		127.0.0.1:$1 inet n - n - - smtpd
		cleanup unix n - n - 0 cleanup
		qmgr unix n - n 300 1 qmgr
		tlsmgr unix - - n 1000? 1 tlsmgr
		rewrite unix - - n - - trivial-rewrite
		bounce unix - - n - 0 bounce
		defer unix - - n - 0 bounce
		trace unix - - n - 0 bounce
		virtual unix - n n - - virtual
		error unix - - n - - error
		retry unix - - n - - error
		anvil unix - - n - 1 anvil
		proxymap unix - - n - - proxymap
		postlog unix-dgram n - n - 1 postlogd
	CONF
	timeout 180 postfix -c "$dir/etc" start >"$work/postfix-start.log" 2>&1 || die "Postfix does not start"
	postfixes+=("$dir/etc")
	within 30 answers "$1"
}

# answers PORT tells whether somebody listens there.
answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# mails DIRECTORY NUMBER tells whether a Maildir holds so many messages.
mails() { [ "$(find "$1/new" -type f 2>/dev/null | wc -l)" -ge "$2" ]; }
