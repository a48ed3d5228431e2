# Shared by the checks that need a name server: source it after lib.sh.
#
#   dns_need
#   knot_start 127.0.0.1 "$port" sender.example "$work/sender.example.zone"
#   knsupdate …, or: KNOT_ADDR=127.0.0.1:$port KNOT_ZONE=sender.example KNOT_KEY=$dns_key go test -tags realdns ./delivery/txt
#   knot_stop 127.0.0.1
declare -A knots=() # process ids of the servers that run, by address
dns_key=            # file with the TSIG key that may change TXT records, as tsig-keygen prints it, mode 0600

dns_need() { need knot openssl; }

# knot_start ADDRESS PORT ZONE FILE [ZONE FILE]… runs Debian's Knot DNS as the primary server of the zones, each from its zone file (which
# stays as it is). TXT records may be changed by updates under $dns_key, which is made by the first call. One server for each address.
knot_start() {
	local address=$1 port=$2 dir=$work/knot-$1 secret
	shift 2
	mkdir -p "$dir/zones"
	if [ -z "$dns_key" ]; then
		dns_key=$work/dns.key
		(
			umask 077
			printf 'key "dkim-update" {\n\talgorithm hmac-sha256;\n\tsecret "%s";\n};\n' "$(openssl rand -base64 32)" >"$dns_key"
		)
	fi
	secret=$(sed -n 's/.*secret "\(.*\)";/\1/p' "$dns_key")
	(
		umask 077
		cat >"$dir/knot.conf" <<-CONF
			server:
			  listen: $address@$port
			  rundir: $dir
			database:
			  storage: $dir
			log:
			  - target: stdout
			    any: info
			key:
			  - id: dkim-update
			    algorithm: hmac-sha256
			    secret: $secret
			acl:
			  - id: dkim
			    key: dkim-update
			    action: update
			    update-type: TXT
			zone:
		CONF
	)
	while [ $# -ge 2 ]; do
		cp "$2" "$dir/zones/$1.zone"
		printf '  - domain: %s\n    file: %s\n    acl: dkim\n    zonefile-sync: -1\n    zonefile-load: difference\n' "$1" "$dir/zones/$1.zone" >>"$dir/knot.conf"
		shift 2
	done
	knotc -c "$dir/knot.conf" conf-check >"$work/knot-check-$address.log" 2>&1 || die "Knot does not like its configuration"
	knotc -c "$dir/knot.conf" zone-check >"$work/knot-zones-$address.log" 2>&1 || die "Knot does not like the zones"
	knotd -c "$dir/knot.conf" >"$work/knot-$address.log" 2>&1 &
	knots[$address]=$!
	pids+=("$!")
	within 30 knot_serves "$address" "$port"
}

# knot_serves ADDRESS PORT tells whether the server takes connections; it is an error if it has ended.
knot_serves() {
	kill -0 "${knots[$1]}" 2>/dev/null || die "Knot at $1 has ended"
	(exec 3<>"/dev/tcp/$1/$2") 2>/dev/null
}

# knot_stop ADDRESS ends the server there; what updates have written is lost with $work.
knot_stop() {
	local pid=${knots[$1]}
	kill "$pid"
	wait_end "$pid" 20 || die "Knot at $1 does not stop"
	unset "knots[$1]"
}

# dns_publish DOMAIN PORT puts the records of a domain's keys into the DNS, as an admin would; the check has a function dkim for the command.
dns_publish() {
	dkim dns "$1" --format nsupdate --ttl 2s >"$work/records.nsupdate" || die "dkim dns $1"
	{
		printf 'server 127.0.0.1 %s\nzone %s.\n' "$2" "$1"
		cat "$work/records.nsupdate"
	} >"$work/updates"
	knsupdate -y "hmac-sha256:dkim-update:$(sed -n 's/.*secret "\(.*\)";/\1/p' "$dns_key")" "$work/updates" >"$work/knsupdate.log" 2>&1 || die "knsupdate"
}

# dkim_dns_records PORT DOMAIN SELECTOR… prints what the DNS says of keys, a name and a value on each line, for verifiers.
dkim_dns_records() {
	local port=$1 domain=$2 name
	shift 2
	for name in "$@"; do
		printf '%s._domainkey.%s %s\n' "$name" "$domain" "$(kdig +short -p "$port" @127.0.0.1 "$name._domainkey.$domain" TXT | sed 's/" "//g; s/"//g')"
	done
}
