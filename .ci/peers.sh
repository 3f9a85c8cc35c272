#!/bin/sh
# Installs the servers that the peer tests talk to into bin/peers and prints the
# variables that make the tests find them:
#
#     eval "$(.ci/peers.sh)"          all; the first build of mailpit takes minutes
#     eval "$(.ci/peers.sh aimock)"   one of them
#
# What is there already is not installed again. A peer that cannot be had (no npm)
# is left out with a word on standard error, and its test is skipped.
set -eu
cd "$(dirname "$0")/.."
peers=$PWD/bin/peers
want=${*:-aimock mailpit localkms postgres}
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
	localkms)
		if [ ! -x "$peers/local-kms/local-kms" ]; then
			mkdir -p "$peers/local-kms"
			printf 'module peers/local-kms\n\ngo 1.26.0\n\nrequire github.com/nsmithuk/local-kms v0.0.0-20231025161602-e4d9425700fe\n' \
				>"$peers/local-kms/go.mod"
			(cd "$peers/local-kms" && go build -mod=mod -o local-kms github.com/nsmithuk/local-kms) >&2
		fi
		echo "export MONROE_LOCAL_KMS='$peers/local-kms/local-kms'"
		;;
	postgres)
		# Only the programs: the tests start servers of their own. The package would start
		# one too, if its configuration did not say no.
		postgres() { find /usr/lib/postgresql -maxdepth 3 -path '*/bin/initdb' 2>/dev/null | sort -V | tail -n 1; }
		if [ -z "$(postgres)" ]; then
			if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
				echo "peers: no PostgreSQL, and no right to install it" >&2
				continue
			fi
			mkdir -p /etc/postgresql-common
			grep -qs '^create_main_cluster' /etc/postgresql-common/createcluster.conf ||
				echo 'create_main_cluster = false' >>/etc/postgresql-common/createcluster.conf
			DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql >&2 ||
				{ apt-get update -qq >&2 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql >&2; }
		fi
		echo "export MONROE_POSTGRES='$(dirname "$(postgres)")'"
		;;
	*)
		echo "peers: there is no peer $peer; use aimock, mailpit, localkms or postgres" >&2
		exit 2
		;;
	esac
done
