# Thin names for what cargo and our own programs do. `make` alone lists them.

SHELL := /bin/bash
.DEFAULT_GOAL := help
# A shell that was open before rustup ran does not know its cargo.
export PATH := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin:$(PATH)

PROGRAMS := target/release
CARGO := cargo

.PHONY: help
help: ## This list
	@awk -F ':.*## ' '/^[a-z_-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  make onebox [ONEBOX_DIR=onebox METAS=1 REPLICAS=3 PARTITIONS=8 DURABILITY=sync|page_cache"
	@echo "               ENGINE=lsm|sled COORDINATION=embedded|zookeeper SERVERS=1 PORT_BASE=0];"
	@echo "               ONEBOX_DIR also for the others, NAME=replica2 for one process"
	@echo "  make zookeeper [ZOOKEEPER_DIR=zookeeper SERVERS=1 PORT_BASE=0]"
	@echo "  make reliability [PARTS=\"gaps metas-down cable rounds metas scale\" RUNS=20 ROUNDS=100]"
	@echo "  make sim    [SEEDS=1000 FROM=1]"
	@echo "  make bench  [CONNECTIONS=50 DEPTH=1,16 READS=0,100 VALUE=1024 KEYS=200000 DIST=uniform|zipfian"
	@echo "               WINDOW=10 ROUNDS=2 REDIS=true|false]"

# --- building and testing ---------------------------------------------------------------------------------------------

.PHONY: build test check fix docs deny sim bench

# The commit stands in what --version and the logs say.
build: export PEGASUS_GIT_COMMIT = $(shell git describe --always --dirty --exclude '*' 2>/dev/null)
build: ## The release binaries; starts nothing
	@.ci/tools cargo cc
	$(CARGO) build --release --locked -p pegasus-server -p pegasus-shell -p pegasus-onebox -p pegasus-bench \
	  -p pegasus-client --bins --example quickstart

# Builds everything before anything runs, also the servers that tests start as processes.
test: ## All tests, also of clusters of real processes and with the Python client from PyPI
	@.ci/tools cargo cc python pack deb network systemd prometheus zookeeper
	$(CARGO) test --workspace --locked --no-fail-fast

check: ## Format, lints, documentation; changes no file
	@.ci/tools cargo cc lint
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --document-private-items --locked

fix: ## Formats, and mends what clippy can mend
	@.ci/tools cargo cc lint
	$(CARGO) clippy --workspace --all-targets --fix --allow-dirty --allow-staged
	$(CARGO) fmt --all

docs: ## The documents as a book in target/book
	@.ci/tools cargo cc book
	mdbook build

deny: ## Licences, bans and sources of the dependencies
	@.ci/tools cargo deny
	$(CARGO) deny check licenses bans sources

sim: SEEDS ?= 1000
sim: FROM ?= 1
sim: ## A simulated cluster: SEEDS different runs, the first one is FROM
	@.ci/tools cargo cc
	$(CARGO) run --release --locked -p pegasus-sim -- --seeds $(SEEDS) --from $(FROM)

RUNS ?= 20
# `make bench` has another number of that name.
reliability_rounds = $(if $(filter command environment,$(firstword $(origin ROUNDS))),$(ROUNDS),100)
.PHONY: reliability
reliability: build ## Faults on clusters of its own, RUNS of each and ROUNDS of kill -9; docs/reliability.md [PARTS=...]
	@.ci/tools cargo cc
	$(CARGO) build --release --locked -p pegasus-integration-tests --bins
	$(PROGRAMS)/pegasus_reliability $(PARTS:%=--part %) --runs $(RUNS) --rounds $(reliability_rounds)

# --- packages ---------------------------------------------------------------------------------------------------------

.PHONY: pack_server pack_tools pack_deb install-systemd uninstall-systemd

pack_server: build ## Directory and tarball of the servers in target/pack, for hosts without this repository
	@.ci/tools pack
	@deploy/pack.sh server --programs $(PROGRAMS)

pack_tools: build ## The same of shell, bench and onebox
	@.ci/tools pack
	@deploy/pack.sh tools --programs $(PROGRAMS)

pack_deb: build ## Debian packages of the same, in target/pack
	@.ci/tools pack deb
	@deploy/deb.sh server && deploy/deb.sh tools

install-systemd: ## Programs, service units and a first configuration on this host [PREFIX=/usr/local DESTDIR=]
	@[[ -x $(PROGRAMS)/pegasus_server ]] || $(MAKE) --no-print-directory build
	@deploy/systemd/install.sh install --programs $(PROGRAMS) --config config/config.ini

uninstall-systemd: ## Takes programs and units away; configuration and data stay
	@deploy/systemd/install.sh uninstall

# --- a cluster on this machine ----------------------------------------------------------------------------------------

ONEBOX_DIR ?= onebox
ONEBOX = $(PROGRAMS)/pegasus_onebox --dir $(ONEBOX_DIR)
# $(call onebox,COMMAND): with the programs as they are; building comes between an operator and a cluster only if it must.
onebox = if [[ ! -x $(PROGRAMS)/pegasus_onebox && ! -e $(ONEBOX_DIR)/cluster.json ]]; then \
	  echo "there is no onebox in $(ONEBOX_DIR): make onebox starts one" >&2; exit 0; fi; \
	[[ -x $(PROGRAMS)/pegasus_onebox ]] || $(MAKE) --no-print-directory build || exit; $(ONEBOX) $(1)
# Given ones only: an existing onebox keeps what it was made with.
ONEBOX_FLAGS = $(if $(METAS),--metas $(METAS)) $(if $(REPLICAS),--replicas $(REPLICAS)) \
	$(if $(PARTITIONS),--partitions $(PARTITIONS)) $(if $(DURABILITY),--durability $(DURABILITY)) \
	$(if $(ENGINE),--engine $(ENGINE)) $(if $(PORT_BASE),--port-base $(PORT_BASE)) \
	$(if $(COORDINATION),--coordination $(COORDINATION)) $(if $(SERVERS),--zookeepers $(SERVERS))

.PHONY: onebox onebox-list onebox-start onebox-stop onebox-kill onebox-logs onebox-clear

onebox: build ## A whole cluster on 127.0.0.1; waits until it is healthy
	@$(if $(filter zookeeper,$(COORDINATION)),.ci/tools zookeeper)
	@$(ONEBOX) up $(ONEBOX_FLAGS)

onebox-list: ## NAME ROLE ADDRESS PID STATE of each process
	@$(call onebox,list)

onebox-start: ## Starts NAME, or all that do not run
	@$(call onebox,start $(NAME))

onebox-stop: ## Stops NAME, or all, cleanly
	@$(call onebox,stop $(NAME))

onebox-kill: ## kill -9 NAME, or all
	@$(call onebox,kill $(NAME))

onebox-logs: ## The end of the log of NAME, or of all
	@$(call onebox,logs $(NAME))

onebox-clear: ## Kills all and removes logs and data
	@$(call onebox,clear)

# --- ZooKeeper --------------------------------------------------------------------------------------------------------

ZOOKEEPER_DIR ?= zookeeper
ZOOKEEPER = $(PROGRAMS)/pegasus_onebox --dir $(ZOOKEEPER_DIR) zookeeper
zookeeper = [[ -x $(PROGRAMS)/pegasus_onebox ]] || $(MAKE) --no-print-directory build || exit; $(ZOOKEEPER) $(1)

.PHONY: zookeeper zookeeper-list zookeeper-stop zookeeper-clear

zookeeper: ## A real ZooKeeper on 127.0.0.1 (Debian's package, installed when missing); SERVERS=3: an ensemble
	@.ci/tools cargo cc zookeeper
	@$(CARGO) build --quiet --release --locked -p pegasus-onebox
	@$(call zookeeper,up $(if $(SERVERS),--servers $(SERVERS)) $(if $(PORT_BASE),--port-base $(PORT_BASE)))

zookeeper-list: ## NAME ADDRESS PID STATE of each server
	@$(call zookeeper,list)

zookeeper-stop: ## Stops it; what it holds stays
	@$(call zookeeper,stop)

zookeeper-clear: ## Kills it and removes what it holds
	@$(call zookeeper,clear)

# --- the bench --------------------------------------------------------------------------------------------------------

CONNECTIONS ?= 50
DEPTH ?= 1,16
READS ?= 0,100
VALUE ?= 1024
KEYS ?= 200000
DIST ?= uniform
WINDOW ?= 10
ROUNDS ?= 2
REDIS ?= true
port = 127.0.0.1:$(shell echo $$(($(1) + $(or $(PORT_BASE),0))))

bench: build ## Drives the running onebox, and a Redis of three beside it
	@.ci/tools $(if $(filter true,$(REDIS)),redis)
	$(PROGRAMS)/pegasus_bench --meta $(call port,34601) --server collector=$(call port,34101) --json bench.json \
	  --connections $(CONNECTIONS) --depth $(DEPTH) --reads $(READS) --value-bytes $(VALUE) --keys $(KEYS) \
	  --distribution $(DIST) --seconds $(WINDOW) --rounds $(ROUNDS) --redis $(REDIS)
