#!/bin/bash
# Measures Postroad beside Debian's Postfix and OpenDKIM on this machine, in one
# run. Needs root: Postfix's master does. Arguments go to the measuring program,
# for example: .ci/verify/bench-peers.sh -rounds 5 -messages 5000
set -euo pipefail
cd "$(dirname "$0")/../.."

missing=()
for package in postfix opendkim; do
	command -v "$package" >/dev/null || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
	apt-get update -q >&2
	DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" >&2
fi

bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
go build -o "$bin/peers" ./cmd/internal/bench/peers
go build -o "$bin/postroad" ./cmd/postroad
"$bin/peers" -postroad "$bin/postroad" "$@"
