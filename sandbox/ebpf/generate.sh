#!/bin/sh
# Compiles the programs. Only one major version of clang gives the committed bytes;
# where it is not installed the objects stay as they are, except in CI (MONROE_NO_SKIP=1),
# which compares them. Debian: clang-14 llvm-14 libbpf-dev linux-libc-dev.
set -eu
if ! command -v clang-14 >/dev/null || ! command -v llvm-strip-14 >/dev/null; then
	echo "sandbox/ebpf: no clang-14 and llvm-14 here, so the objects were not made again" >&2
	[ "${MONROE_NO_SKIP:-}" != 1 ]
	exit
fi
include=/usr/include/$(gcc -print-multiarch 2>/dev/null || clang-14 -print-target-triple | sed 's/-pc-/-/;s/-unknown-/-/')
make() {
	name=$1 source=$2
	shift 2
	go tool bpf2go -cc clang-14 -strip llvm-strip-14 -cflags "-O2 -g -Wall -Werror -I$include" -target bpfel -tags linux "$@" "$name" "$source"
}
make leases bpf/leases.bpf.c -type lease -type flow -type event
make workers bpf/workers.bpf.c -type event
