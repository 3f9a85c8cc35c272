#!/bin/sh
# Installs the servers that the peer tests talk to into bin/peers and prints the
# variables that make the tests find them:
#
#     eval "$(.ci/peers.sh)"          both; the first build of mailpit takes minutes
#     eval "$(.ci/peers.sh aimock)"   one of them
#
# What is there already is not installed again. A peer that cannot be had (no npm)
# is left out with a word on standard error, and its test is skipped.
set -eu
cd "$(dirname "$0")/.."
peers=$PWD/bin/peers
want=${*:-aimock mailpit}
mkdir -p "$peers"

for peer in $want; do
	case $peer in
	aimock)
		js=$peers/aimock/node_modules/@copilotkit/aimock/dist/cli.js
		if [ ! -f "$js" ]; then
			if ! command -v npm >/dev/null; then
				echo "peers: no npm, so no aimock" >&2
				continue
			fi
			npm install --prefix "$peers/aimock" --ignore-scripts --no-audit --no-fund --save-exact \
				@copilotkit/aimock@1.43.0 >&2
		fi
		echo "export MONROE_AIMOCK='$js'"
		;;
	mailpit)
		if [ ! -x "$peers/mailpit/mailpit" ]; then
			mkdir -p "$peers/mailpit"
			# An exact requirement: the module has no list of versions to choose from.
			printf 'module peers/mailpit\n\ngo 1.26.0\n\nrequire github.com/axllent/mailpit v1.27.11\n' \
				>"$peers/mailpit/go.mod"
			(cd "$peers/mailpit" && go build -mod=mod -o mailpit github.com/axllent/mailpit) >&2
		fi
		echo "export MONROE_MAILPIT='$peers/mailpit/mailpit'"
		;;
	*)
		echo "peers: there is no peer $peer; use aimock or mailpit" >&2
		exit 2
		;;
	esac
done
