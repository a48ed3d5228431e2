# Shared by the chaos checks, on top of lib.sh: builds the harness and what it runs, once.
private=() # command prefix of every run

go build -o "$work/chaos" ./cmd/internal/cluster/chaos
go build -tags failpoints -o "$work/postroad" ./cmd/postroad
go build -o "$work/nats-server" github.com/nats-io/nats-server/v2

# chaos FLAG… makes one run. The harness bounds itself; the longer limit here is for a harness that hangs.
chaos() {
	local dir
	dir=$(mktemp -d "$work/run.XXXXXX")
	if ! timeout --kill-after=30 2h "${private[@]}" "$work/chaos" -postroad "$work/postroad" -nats "$work/nats-server" -dir "$dir" "$@" 2>&1 |
		tee "$work/verdict"; then
		cp "$dir"/*.log "$work" 2>/dev/null || true
		die "chaos $*"
	fi
	rm -rf "$dir"
}
