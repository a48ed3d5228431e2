#!/bin/sh
# Builds the Vault server that the tests run against, unless it is there, and prints where it is. The first build takes about a
# quarter of an hour of CPU time; POSTROAD_CACHE says where the program is kept, GO which go command builds it.
#
#   VAULT_BINARY=$(.ci/vault/build.sh) go test -tags realvault ./signer/vault
set -eu
version=1.21.0
binary=${POSTROAD_CACHE:-${HOME:?}/.cache/postroad}/vault-$version/vault

if [ ! -x "$binary" ]; then
	cd "$(dirname "$0")"
	mkdir -p "$(dirname "$binary")"
	exec 9>"$binary.lock"
	flock 9 # somebody else may be at it
fi
if [ ! -x "$binary" ]; then
	# Under a passing name first: a build that was cut off leaves no half program behind.
	nice -n 15 "${GO:-go}" build -mod=mod -trimpath -ldflags "-s -w" -o "$binary.part" github.com/hashicorp/vault
	mv "$binary.part" "$binary"
fi
echo "$binary"
