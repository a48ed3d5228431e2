#!/bin/bash
# A million mails wait for a site of which one MX host never answers and the other refuses connections: mail to others is timed beside a
# server with an empty queue, and again while the site is back and its backlog leaves at a limit. cmd/internal/verify/deadhost with -million
# tells how and prints what it measured. Needs root, for a network of its own in which port 25 is free, and 3 KB a mail below $TMPDIR.
#
#   .ci/verify/million.sh               1,000,000 mails: about an hour on two quiet cores, 3 GB of disk
#   .ci/verify/million.sh 20000         short, for CI; JOBS=20000 does the same
#   .ci/verify/million.sh 20000 -rounds 3 -returning 30s   further flags go to the Go program
source "$(dirname "$0")/lib.sh"
jobs=${1:-${JOBS:-1000000}}
shift $(($# > 0 ? 1 : 0))
[ "$jobs" -ge 100000 ] || set -- -tried 0.02 -mails 100 -rounds 3 -settle 10s -returning 75s "$@"
[ "$(id -u)" = 0 ] || die "it needs root, for a network of its own"
need iproute2

build
go build -o "$work/deadhost" ./cmd/internal/verify/deadhost
mkdir "$work/run"
timeout --kill-after=30 4h unshare --net sh -c 'ip link set lo up && exec "$@"' sh \
	"$work/deadhost" -million -postroad "$work/postroad" -dir "$work/run" -jobs "$jobs" -patience 3h "$@" &
pids+=($!)
wait $! || die "$jobs jobs that wait are not without consequences for others"
