# The commands of this project. `make help` lists them.

CARGO ?= cargo

.PHONY: help
help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: run
run: ## Run the server for a laptop: demo app, loopback receivers allowed
	$(CARGO) run --release -- dev

.PHONY: test
test: ## Run every test
	$(CARGO) test --locked

.PHONY: check
check: ## Run what a change must pass: format, lints, documentation, tests
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" $(CARGO) doc --no-deps --document-private-items --locked
	$(MAKE) test

.PHONY: bench
bench: ## Measure throughput and latency against the bare HTTP limit of this machine
	$(CARGO) bench --bench throughput --locked

.PHONY: bench-isolation bench-refusing bench-backlog bench-idle
bench-isolation: ## Measure 10,000 subscriptions of which a tenth hang, refuse or fail (two minutes)
	$(CARGO) bench --bench throughput --locked -- --only isolation

bench-refusing: ## Measure a receiver that refuses 30 % of the contacts for good (two minutes)
	$(CARGO) bench --bench throughput --locked -- --only refusing

bench-backlog: ## Measure a receiver that comes back with 1,000,000 events owed (six minutes)
	$(CARGO) bench --bench throughput --locked -- --only backlog

bench-idle: ## Measure 100,000 idle subscriptions (five minutes)
	$(CARGO) bench --bench throughput --locked -- --only idle
