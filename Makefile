# The commands of this project. `make help` lists them.

CARGO ?= cargo

.PHONY: help
help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: run
run: ## Run the server for a laptop: demo app, loopback receivers allowed
	$(CARGO) run --release -- dev

.PHONY: test
test: ## Run every test, with a PostgreSQL of its own unless TEST_POSTGRES_URL names one
	tests/postgres/with_server.sh $(CARGO) test --locked

.PHONY: check
check: ## Run what a change must pass: format, lints, documentation, tests
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" $(CARGO) doc --no-deps --document-private-items --locked
	$(MAKE) test

# Tools that are not part of the toolchain, built into target/ when they are missing. The version is part of the command:
# an installed tool of another version is replaced.
TOOL = $(CARGO) install --locked --quiet --root target/tools --version

.PHONY: deny
deny: ## Check licences, banned crates and sources of everything that is compiled in (deny.toml)
	$(TOOL) 0.20.2 cargo-deny
	target/tools/bin/cargo-deny --locked check licenses bans sources

.PHONY: sbom
sbom: ## Write the list of components, CycloneDX 1.5, to target/sbom/rollcall.cdx.json
	$(TOOL) 0.5.9 cargo-cyclonedx
	mkdir -p target/sbom
	target/tools/bin/cargo-cyclonedx cyclonedx --format json --spec-version 1.5 --override-filename rollcall.cdx
	mv rollcall.cdx.json target/sbom/rollcall.cdx.json

.PHONY: scan
scan: ## Scan a server's TLS and let callers dawdle, with tools from Debian (three minutes)
	tests/scan/run.sh

.PHONY: bench
bench: ## Measure throughput and latency against the bare HTTP limit of this machine
	$(CARGO) bench --bench throughput --locked

# The long forms of tests that `make test` runs in a short form. SEED=… repeats a run.
LONG_TEST = ROLLCALL_TEST_SEED=$(SEED) $(CARGO) test --test it --locked -- --nocapture

KILLS ?= 500

.PHONY: crash
crash: ## Kill the server KILLS times (500) under load and during start; nothing may be lost
	ROLLCALL_TEST_KILLS=$(KILLS) $(LONG_TEST) delivery_crash::kills_at_random_moments_lose_nothing_and_repeat_little

CUTS ?= 1000

.PHONY: power-cut
power-cut: ## Cut the power CUTS times (1000) in a simulation of the disk; nothing acknowledged may be lost
	ROLLCALL_TEST_CUTS=$(CUTS) $(LONG_TEST) store_power_cut::

NODE_KILLS ?= 20
# How long the sessions of all nodes are ended every 200 ms.
TERMINATE ?= 60

.PHONY: nodes-failures
nodes-failures: ## Kill and stop nodes NODE_KILLS times (20), kill PostgreSQL, cut the way to it, fail over; nothing may be lost
	ROLLCALL_TEST_NODE_KILLS=$(NODE_KILLS) ROLLCALL_TEST_TERMINATE_SECONDS=$(TERMINATE) \
	tests/postgres/with_server.sh $(CARGO) test --test it --locked -- nodes_failures nodes_database nodes_went_back --nocapture --test-threads=1

FAULTS ?= 200

.PHONY: disk-faults
disk-faults: ## Let the disk fail in every way, and FAULTS times (200) at random
	ROLLCALL_TEST_FAULTS=$(FAULTS) $(LONG_TEST) store_disk_

# Worlds that `make simulate` runs, and the first of them.
SEEDS ?= 1000000
FROM ?= 0

.PHONY: simulate
simulate: ## Run seeded worlds of the lane on every core: make simulate SEEDS=1000000 FROM=0
	SEEDS=$(SEEDS) FROM=$(FROM) $(CARGO) test --release --lib --locked simulation::seeds -- --nocapture

.PHONY: simulate-faults
simulate-faults: ## Plant faults in a copy of the lane and show which check catches each
	tests/faults/run.sh

SECONDS ?= 600
# All of them unless named.
TARGET ?=

.PHONY: fuzz
fuzz: ## Fuzz the parsers that see bytes from outside, each for SECONDS (600): make fuzz TARGET=url
	CARGO=$(CARGO) fuzz/run.sh $(SECONDS) $(TARGET)

.PHONY: bench-lookups
bench-lookups: ## Measure whether look-ups tell that an id exists in another service (20 seconds)
	$(CARGO) bench --bench throughput --locked -- --only lookups

# A server of its own on the disk of target/, with everything on that keeps a commit, set as docs/operations.md says.
# BENCH_POSTGRES_URL names another one.
POSTGRES_SETTINGS = -c shared_buffers=512MB -c max_wal_size=8GB -c checkpoint_timeout=15min -c wal_compression=lz4 \
	-c autovacuum_naptime=10s -c autovacuum_vacuum_cost_limit=2000

.PHONY: bench-postgres
bench-postgres: ## Measure group commit, one to three nodes, and a transaction held open, on a durable PostgreSQL (eleven minutes)
	mkdir -p target/postgres && chmod 755 target target/postgres
	TMPDIR=$(CURDIR)/target/postgres POSTGRES_URL_NAME=BENCH_POSTGRES_URL POSTGRES_DURABLE=1 \
		POSTGRES_OPTIONS="$(POSTGRES_SETTINGS)" \
		tests/postgres/with_server.sh env -u TMPDIR $(CARGO) bench --bench throughput --locked -- --only groups --only nodes --only held-open

.PHONY: bench-isolation bench-refusing bench-backlog bench-idle
bench-isolation: ## Measure 10,000 subscriptions of which a tenth hang, refuse or fail (two minutes)
	$(CARGO) bench --bench throughput --locked -- --only isolation

bench-refusing: ## Measure a receiver that refuses 30 % of the contacts for good (two minutes)
	$(CARGO) bench --bench throughput --locked -- --only refusing

bench-backlog: ## Measure a receiver that comes back with 1,000,000 events owed (six minutes)
	$(CARGO) bench --bench throughput --locked -- --only backlog

bench-idle: ## Measure 100,000 idle subscriptions (five minutes)
	$(CARGO) bench --bench throughput --locked -- --only idle
