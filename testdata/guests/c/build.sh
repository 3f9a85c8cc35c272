#!/bin/sh
# Builds echo.wasm. Needs clang and lld (Debian: apt-get install clang lld) and Go.
# No libc: the result depends on echo.c, monroe.h, manifest.json and clang alone.
set -eu
cd "$(dirname "$0")"
bare=$(mktemp)
trap 'rm -f "$bare"' EXIT
clang --target=wasm32 -std=c11 -O2 -ffreestanding -fno-builtin -nostdlib -Wall -Wextra -Werror \
	-Wl,--no-entry -Wl,--strip-all -Wl,-z,stack-size=16384 -Wl,--initial-memory=2097152 -Wl,--max-memory=2097152 \
	-o "$bare" echo.c
go run ../../../guest/build -o echo.wasm -attach manifest.json "$bare"
