# monroe: make help lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-builtin-rules

export GOFLAGS ?= -buildvcs=false
GO     ?= go
HOME_  ?= $(CURDIR)/.monroe
FILES  ?= $(CURDIR)/docs
LINT    = github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
LDFLAGS = -s -w

# The race detector needs cgo and a C compiler; without them the tests run without it.
CAN_RACE := $(shell CGO_ENABLED=1 $(GO) env CGO_ENABLED 2>/dev/null | grep -q 1 && command -v $$($(GO) env CC) >/dev/null 2>&1 && echo yes)
RACE     := $(if $(CAN_RACE),-race,)

.PHONY: help build guests run demo test check lint fmt deps generate bench conformance test-wasmtime test-vm fuzz torture torture-sabotage clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 20

build: guests ## build the programs and the built-in guests into bin
	@echo "building monroe, monroed and monroe-worker"
	@CGO_ENABLED=0 $(GO) build -trimpath -ldflags="$(LDFLAGS)" -o bin/ ./cmd/...

guests: ## build the built-in guests into bin/guests
	@echo "building the built-in guests"
	@$(GO) run ./guest/build -o bin/guests

run: build ## run the digest skill over FILES (default: docs), and ask before the mail leaves
	@bin/monroe --home "$(HOME_)" -w demo demo --files "$(FILES)" $(ARGS)

demo: build ## the same without a question: the owner's token approves
	@bin/monroe --home "$(HOME_)" -w demo demo --files "$(FILES)" --yes $(ARGS)

test: ## run every test; what cannot run here is skipped by name and counted
	@echo "testing $(if $(RACE),with the race detector,WITHOUT the race detector: no C compiler here)"
	@.ci/gotest $(RACE)

check: generate fmt lint deps test ## everything that a change must pass
	@git diff --exit-code --stat || { echo "check: the files above are not what generate and fmt make; commit them"; exit 1; }

lint: ## static checks
	@$(GO) vet ./... ./testdata/bench/ours ./testdata/bench/engine ./testdata/bench/spawner ./testdata/torture ./testdata/vm ./testdata/guests/...
	@GOOS=darwin $(GO) vet ./host/... ./connectors/... ./sandbox/... ./abi/... ./guest/...
	@$(GO) run $(LINT) run ./...

fmt: ## format
	@$(GO) run $(LINT) fmt ./...

deps: ## who imports whom, directly and transitively
	@$(GO) mod verify >/dev/null
	@$(GO) mod tidy -diff
	@$(GO) test -count=1 -run 'Deps|Depend|Imports' ./cmd/... ./abi/...

generate: ## write the files that are made from code
	@$(GO) generate ./...

bench: ## one JSON object a line, for each figure, with its peer from the same run where it has one
	@$(MAKE) --no-print-directory build >&2
	@$(GO) run ./testdata/bench/ours -peers testdata/bench/peers

conformance: build ## hold this host to every clause of the SPEC, and see that broken hosts fail
	@$(GO) test -count=1 -timeout 30m ./abi/... ./cmd/monroe-conformance
	@bin/monroe-conformance host bin/monroe-conformance serve

# Wasmtime needs cgo and glibc. A worker with it has to be static (docs/conformance.md); the
# linker warns of what would look for libraries, such as getaddrinfo, which no worker calls.
STATIC = -linkmode=external -extldflags=-static
test-wasmtime: build ## the second engine: its tests, and the same transcript as the first, call by call
	@CGO_ENABLED=1 $(GO) vet -tags wasmtime ./sandbox/... ./cmd/monroe-worker
	@CGO_ENABLED=1 $(GO) test -count=1 -timeout 30m -tags wasmtime ./sandbox ./sandbox/confine ./sandbox/doctor ./sandbox/spawn
	@mkdir -p out && CGO_ENABLED=1 $(GO) build -tags wasmtime -trimpath -ldflags="$(LDFLAGS) $(STATIC)" -o bin/wasmtime/ ./cmd/monroe-worker 2>out/static.log || { cat out/static.log; exit 1; }
	@bin/monroe-conformance host -transcript out/wazero.txt bin/monroe-conformance serve
	@bin/monroe-conformance host -transcript out/wasmtime.txt bin/monroe-conformance serve -worker bin/wasmtime/monroe-worker
	@cmp out/wazero.txt out/wasmtime.txt && echo "both engines give the same transcript"

test-vm: ## the tests that testdata/vm/tests names, on a stock kernel in an emulated machine (Debian, root; ARCH=arm64 for the other one)
	@.ci/vm $(ARCH)

# A number of executions, not a time: when a time runs out under load, Go 1.26's fuzzing
# coordinator may call its own deadline a failure (go.dev/issue/75804, mended in 1.27).
FUZZTIME ?= 200000x
# A worker that is fuzzed ends a whole run each time.
FUZZRUNS ?= 500x
fuzz: ## each fuzz target for FUZZTIME
	@for p in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '^Fuzz' $$p 2>/dev/null | grep '^Fuzz' || true); do \
	    n=$(FUZZTIME); [ $$f = FuzzWorker ] && n=$(FUZZRUNS); \
	    echo "fuzz $$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $$n -fuzzminimizetime 100x $$p || exit 1; \
	  done; \
	done

N     ?= 200
STORE ?= sqlite
torture: build ## kill the daemon and its workers N times over STORE (sqlite or postgres): nothing lost, nothing twice
	@$(GO) run ./guest/build -o bin/guests ./testdata/guests/sender >/dev/null
	@$(GO) build -o bin/tools/torture ./testdata/torture
	@bin/tools/torture -kills $(N) -store $(STORE) $(if $(SEED),-seed $(SEED)) $(if $(SABOTAGE),-sabotage $(SABOTAGE))

torture-sabotage: build ## take out one safety at a time: each time the torture has to turn red
	@$(GO) run ./guest/build -o bin/guests ./testdata/guests/sender >/dev/null
	@$(GO) build -o bin/tools/torture ./testdata/torture
	@for s in fence not_after key; do \
	  out=$$(bin/tools/torture -kills 0 -store postgres -sabotage $$s) && { echo "torture-sabotage: without $$s it is green: $$out"; exit 1; }; \
	  case $$s:$$out in \
	    fence:torture:*audit=FAILED|not_after:torture:*duplicated=[1-9]*audit=*|key:torture:*duplicated=[1-9]*audit=*) echo "without $$s: $$out";; \
	    *) echo "torture-sabotage: without $$s it is red for another reason: $$out"; exit 1;; esac; \
	done

clean: ## remove what was built
	@rm -rf bin out
