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

# Worlds that `make simulate` runs, and the first of them.
SEEDS ?= 1000000
FROM ?= 0

.PHONY: simulate
simulate: ## Run seeded worlds of the lane on every core: make simulate SEEDS=1000000 FROM=0
	SEEDS=$(SEEDS) FROM=$(FROM) $(CARGO) test --release --lib --locked simulation::seeds -- --nocapture

.PHONY: simulate-faults
simulate-faults: ## Plant faults in a copy of the lane and show which check catches each
	tests/faults/run.sh
