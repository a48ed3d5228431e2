#!/usr/bin/env bash
# The same as chaos.sh on three queue servers (R3, sync always, configured from deploy/nats), which are killed, stopped and cut
# off as well. Then a planted fault, which the account must show.
#
#   chaos-r3.sh                                      short, for CI
#   chaos-r3.sh -messages 10000 -duration 10m -kills 60 -seed 7     as long as you like; what is given replaces the default
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. .ci/verify/chaos-lib.sh

chaos -mode r3 -messages 3000 -duration 60s -kills 12 -waiting 100 -drain 240s "$@"
chaos -mode r3 -plant early-250 -messages 1000 -duration 20s -kills 20 -waiting 0 -drain 60s
say "shown: faults of the queue servers lose nothing, and the planted fault is caught"
