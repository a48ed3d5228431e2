# Shared by the checks that need a load balancer: source it after lib.sh.
haproxy= # its process id, when it runs

# haproxy_need installs HAProxy, and checks the file that is shipped for operators.
haproxy_need() {
	need haproxy curl
	haproxy -c -f deploy/haproxy/haproxy.cfg >"$work/haproxy-example.log" 2>&1 || die "HAProxy does not like deploy/haproxy/haproxy.cfg"
}

# haproxy_road NAME PORT CHECK SERVER… prints a frontend on 127.0.0.1:PORT with servers behind it, given by their ports on 127.0.0.1.
# HAProxy speaks to them from $balancer (127.0.0.1), with a PROXY header of version 2. CHECK is smtp for a dialogue on the server's own
# port, or the port of its /readyz.
haproxy_road() {
	local name=$1 port=$2 check=$3 server n=0
	shift 3
	printf 'frontend %s\n\tbind 127.0.0.1:%s\n\tdefault_backend %s\nbackend %s\n' "$name" "$port" "$name" "$name"
	if [ "$check" = smtp ]; then
		printf '\toption smtpchk EHLO balancer.example.com\n\tdefault-server send-proxy-v2 check check-send-proxy inter 200ms fall 2 rise 2\n'
	else
		printf '\toption httpchk\n\thttp-check send meth GET uri /readyz\n\thttp-check expect status 200\n'
		printf '\tdefault-server send-proxy-v2 check port %s inter 200ms fall 1 rise 2\n' "$check"
	fi
	for server in "$@"; do
		n=$((n + 1))
		printf '\tserver %s-%d 127.0.0.1:%s source %s\n' "$name" $n "$server" "${balancer:-127.0.0.1}"
	done
}

# haproxy_start PORT < <(haproxy_road …) runs HAProxy with the roads from standard input (no pipe: it sets variables); its own figures are at PORT.
haproxy_start() {
	{
		printf 'global\n\tlog stdout format raw local0\ndefaults\n\tmode tcp\n\tlog global\n\toption tcplog\n\toption dontlognull\n'
		printf '\tretries 3\n\toption redispatch\n\ttimeout connect 20s\n\ttimeout client 11m\n\ttimeout server 11m\n\ttimeout check 20s\n'
		cat
		printf 'frontend stats\n\tmode http\n\tbind 127.0.0.1:%s\n\tstats enable\n\tstats uri /\n' "$1"
	} >"$work/haproxy.cfg"
	haproxy -c -f "$work/haproxy.cfg" >"$work/haproxy-check.log" 2>&1 || die "HAProxy does not like its configuration"
	haproxy -db -f "$work/haproxy.cfg" >"$work/haproxy.log" 2>&1 &
	haproxy=$!
	haproxy_stats=$1
	pids+=("$haproxy")
	within 30 answers "$1"
}

# haproxy_stop ends it at once, with all its connections.
haproxy_stop() {
	kill "$haproxy"
	wait_end "$haproxy" 20 || die "HAProxy does not stop"
	haproxy=
}

# haproxy_is SERVER STATE tells whether HAProxy sees a server (NAME-1, NAME-2 …) as UP or DOWN.
haproxy_is() {
	curl -sf -m 30 "http://127.0.0.1:$haproxy_stats/;csv" | awk -F, -v server="$1" -v state="$2" '$2 == server && $18 ~ "^" state {seen = 1} END {exit !seen}'
}
