# Drover. `make help` lists what there is. Needs root where real hosts are made (demo, tests, lab).
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup build demo check test test-unit test-lab test-all fuzz chaos failures-table lab-up lab-down lab-shell bench bench-storage bench-convergence clean

CARGO ?= cargo
HOST ?= host-a
SECONDS ?= 60
MINUTES ?= 30
SEED ?=
VENV := .venv

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what Debian lacks (root)
	@scripts/install-packages

build: setup ## Build everything
	@scripts/quietly "Building Drover" $(CARGO) build --workspace --bins --locked

demo: build $(VENV)/.ready ## Two real hosts, one running guest, one migration; then a timeline (root)
	@target/debug/drover-demo

check: setup $(VENV)/.ready ## Format, clippy, API lint and changes, dependencies, licences
	@scripts/quietly "Format" $(CARGO) fmt --all --check
	@scripts/quietly "Clippy" $(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	@cd proto/proto && PATH="$(CURDIR)/$(VENV)/bin:$$PATH" && ../../scripts/quietly "buf lint" buf lint && ../../scripts/quietly "buf format" buf format --diff --exit-code
	@scripts/quietly "API changes" scripts/check-api
	@scripts/quietly "Dependencies" scripts/check-dependencies
	@scripts/quietly "Licences" scripts/check-licences

$(VENV)/.ready: scripts/requirements.txt
	@python3 -m venv $(VENV)
	@scripts/quietly "Installing test tools" $(VENV)/bin/pip install --quiet --disable-pip-version-check -r scripts/requirements.txt
	@touch $@

test: test-unit test-lab ## All tests: units, then real libvirtd and QEMU (root)

# Named one by one and not by --exclude, which would compile the libraries anew with other features.
UNIT_FILES := $(filter-out tests/%,$(wildcard */tests/*.rs) $(patsubst %/main.rs,%.rs,$(wildcard */tests/*/main.rs)))
UNIT := --lib --bins $(patsubst %,--test %,$(basename $(notdir $(UNIT_FILES))))

test-unit: setup ## Tests that need no host
	@$(CARGO) test --workspace --locked --quiet $(UNIT)

test-lab: build $(VENV)/.ready ## Tests on real hosts, in namespaces (root)
	@scripts/test-lab

test-all: test-unit build $(VENV)/.ready ## Everything, also what takes long; resumable (root)
	@scripts/test-simulation
	@scripts/test-lab --all

fuzz: setup ## Attack the readers of what comes from outside: make fuzz SECONDS=60 (for each)
	@DROVER_FUZZ_SECONDS=$(SECONDS) $(CARGO) test -p drover-fuzz --locked --quiet -- --nocapture --test-threads 1

chaos: build ## Random faults against random migrations: make chaos MINUTES=30 SEED=7 (root)
	@target/debug/drover-faults chaos --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

failures-table: build ## What the faults on real hosts came to, as the table of docs/failures.md
	@target/debug/drover-faults table

bench: build $(VENV)/.ready ## Figures: Drover against virsh, interleaved (root)
	@target/debug/drover-bench

bench-storage: build $(VENV)/.ready ## Figures: disks moved by Drover, rsync, qemu-img and virsh, interleaved (root)
	@scripts/install-packages rsync openssh-server
	@target/debug/drover-bench-storage

bench-convergence: build $(VENV)/.plots ## Figures: busy guests by virsh and by Drover: make bench-convergence ARGS="--runs 1 --loads idle" (root)
	@target/debug/drover-convergence $(ARGS)
	@$(VENV)/bin/python scripts/plot-convergence

# Only who wants pictures waits for these.
$(VENV)/.plots: $(VENV)/.ready scripts/requirements-plots.txt
	@scripts/quietly "Installing plotting tools" $(VENV)/bin/pip install --quiet --disable-pip-version-check -r scripts/requirements-plots.txt
	@touch $@

lab-up: build ## Bring up two hosts and leave them (root)
	@target/debug/drover-lab up --guest

lab-down: ## Take these hosts down again (root)
	@target/debug/drover-lab down

lab-shell: ## A shell in one of the lab's hosts: make lab-shell HOST=host-a (root)
	@target/debug/drover-lab shell $(HOST)

clean: ## Remove what was built
	@$(CARGO) clean
	@rm -rf $(VENV)
