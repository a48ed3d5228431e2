#!/bin/bash
# A destination that answers 450 keeps its own mail waiting and nobody else's. First one message, with Postfix's smtp-sink as the
# destination: it waits, `postroad queue list` and `trace` say until when and why, and when the destination is better `queue retry`
# brings it there. Then very many jobs for a dead domain, each accepted through the queue, signed and tried, while mail to other domains is
# timed: cmd/internal/verify/deadhost tells how and prints a table. Needs root (to install packages) and about 1 GB below $TMPDIR.
#
#   .ci/verify/deadhost.sh              200,000 jobs, about 15 minutes on two quiet cores
#   .ci/verify/deadhost.sh 20000        JOBS=20000 does the same
#   .ci/verify/deadhost.sh 5000 -settle 5s -mails 100     further flags go to the Go program
source "$(dirname "$0")/lib.sh"
need curl swaks postfix
jobs=${1:-${JOBS:-200000}}
shift $(($# > 0 ? 1 : 0))

build
free_ports smtp bad
cat >"$work/postroad.yaml" <<CONF
hostname: relay.sender.example
data_dir: $work/data
ingress: {listeners: [{address: "127.0.0.1:$smtp"}]}
signer: {missing_key: pass}
delivery:
  routes: [{domains: [bad.example], via: "smtp:[127.0.0.1]:$bad", tls: none, allow_private: true}]
log: {format: json}
CONF

# destination FLAGS… runs smtp-sink in place of the one before.
destination=
destination() {
	if [ -n "$destination" ]; then
		kill "$destination"
		wait "$destination" 2>/dev/null || true
	fi
	smtp-sink -c -u nobody -h mx.bad.example "$@" "127.0.0.1:$bad" 100 >"$work/smtp-sink.log" 2>&1 &
	destination=$!
	pids=("$destination")
	within 20 answers "$bad"
}

destination -r rcpt
serve
timeout 180 swaks --timeout 120 --server "127.0.0.1:$smtp" --from rider@sender.example --to you@bad.example >"$work/swaks.log" 2>&1 ||
	die "swaks: the message was not accepted"
id=$(sed -n 's/^<.*  250 .*queued as \([0-9a-z]\{27\}\).*/\1/p' "$work/swaks.log")
[ ${#id} -eq 27 ] || die "swaks got no id in the reply to the final dot"

waits() { postroad queue list >"$work/list.log" && grep -q "^$id  later .*  bad.example .*  in [0-9hms]* .*450" "$work/list.log"; }
within 30 waits
say "postroad queue list:"
sed 's/^/  /' "$work/list.log"
explained() { postroad trace "$id" >"$work/trace.log" && grep -q ' deferred .*<you@bad.example>.* 450 .*(try 1).* next try ' "$work/trace.log" && grep -q '^now: .* waits; next try ' "$work/trace.log"; }
within 20 explained
say "postroad trace $id:"
sed 's/^/  /' "$work/trace.log"

destination
[ "$(postroad queue retry "$id")" = "retry: moved 1" ] || die "queue retry did not move the job"
arrived() { postroad trace "$id" >"$work/trace.log" && grep -q ' delivered .*<you@bad.example>.* 250 .*(try 2)' "$work/trace.log"; }
within 60 arrived
within 20 queue_is_empty
stop_server
say "one message: waited with its time and its reason shown, and went on queue retry"

go build -o "$work/deadhost" ./cmd/internal/verify/deadhost
mkdir "$work/many"
"$work/deadhost" -postroad "$work/postroad" -dir "$work/many" -jobs "$jobs" "$@" &
pids+=($!)
wait $! || die "$jobs jobs that wait are not without consequences for others"
