#!/bin/bash
# What more delivery workers bring: mails for 1,000 domains on 50 sites, found by MX records, at receivers that are 200 ms away, with one,
# two and four delivery processes: cmd/internal/verify/scale tells how and prints a line for each. Needs root, for a network of its own in
# which port 25 is free, and about 6 KB a mail below $TMPDIR.
#
#   .ci/verify/scale.sh                 100,000 mails, about 8 minutes
#   .ci/verify/scale.sh 4000            short, for CI
#   .ci/verify/scale.sh 100000 -connections 4   further flags go to the Go program
source "$(dirname "$0")/lib.sh"
mails=${1:-100000}
shift $(($# > 0 ? 1 : 0))
[ "$mails" -ge 20000 ] || set -- -connections 1 "$@" # or there is hardly time to measure
[ "$(id -u)" = 0 ] || die "it needs root, for a network of its own"
need iproute2

build
go build -o "$work/scale" ./cmd/internal/verify/scale
ulimit -n 20000 2>/dev/null || true
mkdir "$work/run"
timeout --kill-after=30 2h unshare --net sh -c 'ip link set lo up && exec "$@"' sh \
	"$work/scale" -postroad "$work/postroad" -dir "$work/run" -mails "$mails" "$@" &
pids+=($!)
wait $! || die "more workers do not bring more"
