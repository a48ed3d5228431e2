#!/bin/bash
# A limit holds for the whole cluster: four delivery workers have one rule for one site, with more mail than it lets through, and the
# receiver counts. Workers are killed and stopped meanwhile, and the limit is changed by command: cmd/internal/verify/limits tells how and
# prints what it measured. Last a worker without the rule, which the meter must show.
#
#   .ci/verify/limits.sh                5 minutes
#   .ci/verify/limits.sh 40s            short, for CI
#   .ci/verify/limits.sh 5m -rate 200   further flags go to the Go program
source "$(dirname "$0")/lib.sh"
duration=${1:-5m}
shift $(($# > 0 ? 1 : 0))

build
go build -o "$work/limits" ./cmd/internal/verify/limits

# measured NAME FLAG… makes one run.
measured() {
	mkdir "$work/$1"
	timeout --kill-after=30 30m "$work/limits" -postroad "$work/postroad" -dir "$work/$1" "${@:2}" &
	pids+=($!)
	wait $!
}
measured planted -duration 10s -planted 1 "$@" || die "a worker without the rule is not noticed"
measured rule -duration "$duration" "$@" || die "the limit does not hold"
