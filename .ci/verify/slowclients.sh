#!/bin/bash
# 2,000 connections at once, half of them idle or saying one octet a second: what the other half gets accepted, alone and beside them, and
# the memory of the server.
source "$(dirname "$0")/lib.sh"
need curl

build
go build -o "$work/fleet" ./cmd/internal/verify/fleet
ulimit -n 20000 2>/dev/null || true
free_ports smtp
cat >"$work/postroad.yaml" <<CONF
hostname: relay.sender.example
data_dir: $work/data
ingress:
  max_connections: 3000
  max_client_connections: 3000
  listeners: [{address: "127.0.0.1:$smtp"}]
  classes: [{name: network, submits: false}]
signer: {missing_key: pass}
delivery: {routes: [{domains: ["*"], via: "smtp:[127.0.0.1]:9", allow_private: true}]}
log: {format: json, level: error}
CONF
serve
"$work/fleet" slow -plain "127.0.0.1:$smtp" -pid "$server" "$@" || die "slow clients are noticed"
stop_server
say "slowclients: idle and slow clients cost the others next to nothing"
