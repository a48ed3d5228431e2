#!/bin/sh
# Builds the certificate authority that the check of ACME runs against (Pebble), unless it is there, and prints where it is.
# POSTROAD_CACHE says where the program is kept, GO which go command builds it.
set -eu
version=2.10.3
binary=${POSTROAD_CACHE:-${HOME:?}/.cache/postroad}/pebble-$version/pebble

if [ ! -x "$binary" ]; then
	cd "$(dirname "$0")"
	mkdir -p "$(dirname "$binary")"
	exec 9>"$binary.lock"
	flock 9 # somebody else may be at it
fi
if [ ! -x "$binary" ]; then
	# Under a passing name first: a build that was cut off leaves no half program behind. Without -trimpath it shares the compiled standard library
	# with our own build.
	nice -n 15 "${GO:-go}" build -mod=mod -ldflags "-s -w" -o "$binary.part" github.com/letsencrypt/pebble/v2/cmd/pebble
	mv "$binary.part" "$binary"
fi
echo "$binary"
