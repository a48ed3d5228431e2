#!/usr/bin/env bash
# Power loss of the embedded store under load: an ext4 image on a loop device is shut down without a flush of its journal, so that
# what was not synced is gone. Needs root and loop devices. First the rig shows that it drops what was not synced, last it
# catches a store that syncs lazily.
#
#   chaos-power.sh                                   short, for CI: 12 cuts
#   chaos-power.sh -messages 20000 -duration 8m -kills 100 -seed 7   as long as you like; what is given replaces the default
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. .ci/verify/chaos-lib.sh

[ "$(id -u)" = 0 ] || die "it needs root, for a loop device"
command -v mkfs.ext4 >/dev/null || need e2fsprogs
# Mounts in a name space of their own end with their last process, whatever happens.
private=(unshare --mount --propagation private)

"${private[@]}" go test -count=1 -tags poweron ./cmd/internal/cluster/power
chaos -mode power -messages 1500 -duration 60s -kills 12 -waiting 100 -drain 150s "$@"
chaos -mode power -plant lazy-sync -messages 1500 -duration 20s -kills 5 -waiting 0 -drain 40s
say "shown: power cuts lose nothing, and lazy sync is caught"
