#!/usr/bin/env bash
# Random kills of every role, and one at each named step of the queue protocol, on the embedded queue: every message that was
# answered 250 is delivered, bounced or still queued. Then two planted faults, which the account must show.
#
#   chaos.sh                                         short, for CI: 5,000 messages
#   chaos.sh -messages 20000 -duration 5m -kills 60 -seed 7         as long as you like; what is given replaces the default
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. .ci/verify/chaos-lib.sh

chaos -mode embedded -messages 5000 -duration 60s -kills 20 -waiting 200 -drain 150s "$@"
chaos -mode embedded -plant early-250 -messages 1500 -duration 20s -kills 25 -waiting 0 -drain 40s
chaos -mode embedded -plant early-ack -messages 1500 -duration 20s -kills 25 -waiting 0 -drain 40s
say "shown: kills lose nothing, and both planted faults are caught"
