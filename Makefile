# `make plan` runs the main job; `make test` runs what CI runs. Both set up what they need and can be repeated.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help plan test lint test-transformers test-main accuracy accuracy-peers accuracy-speed screenshot docs trace-matrix trace-published bench gpu-bench envs clean
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
HF := .envs/hf
HF448 := .envs/hf-4.48
LF := .envs/lf
PEERS := .envs/peers
PEER_TOOLS := fitcheck-llm==0.3.1 canifinetune==0.4.1 llm-analysis==0.2.2
PIP_FLAGS := -qq --disable-pip-version-check
ARGS ?= --gpus 3x20GB --model 7B
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TRANSFORMERS_OFFLINE=1

help: ## what can be made
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 20

# ---- environments: a stamp file says that the environment matches pyproject.toml

$(VENV)/.core: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: $(PYTHON) is older than 3.11; try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install $(PIP_FLAGS) -e .
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(VENV)/bin/python -m pip install $(PIP_FLAGS) -e '.[dev]'
	touch $@

# transformers' own counts and module names, at its newest release
$(HF)/.done: requirements/transformers.txt pyproject.toml
	test -x $(HF)/bin/python || $(PYTHON) -m venv $(HF)
	$(HF)/bin/python -m pip install $(PIP_FLAGS) -r requirements/transformers.txt -e '.[dev]'
	touch $@

# the release that published measurements ran with, for their traces
$(HF448)/.done: requirements/transformers-4.48.txt pyproject.toml
	test -x $(HF448)/bin/python || $(PYTHON) -m venv $(HF448)
	$(HF448)/bin/python -m pip install $(PIP_FLAGS) -r requirements/transformers-4.48.txt -e .
	touch $@

# LLaMA-Factory's own parser and trainer. Its torchvision and torchaudio wheels are linked against CUDA and break the
# import on a machine without it: the first is not needed for text, of the second only the compiled part is removed.
$(LF)/.done: requirements/llamafactory.txt requirements/llamafactory-extras.txt
	test -x $(LF)/bin/python || $(PYTHON) -m venv $(LF)
	$(LF)/bin/python -m pip install $(PIP_FLAGS) -r requirements/llamafactory.txt
	$(LF)/bin/python -m pip uninstall --quiet --yes torchvision
	rm -f $(LF)/lib/python3.*/site-packages/torchaudio/lib/_torchaudio*.so
	DS_BUILD_OPS=0 $(LF)/bin/python -m pip install $(PIP_FLAGS) -r requirements/llamafactory-extras.txt
	touch $@

envs: $(VENV)/.dev $(HF)/.done $(LF)/.done ## set up every environment that the tests use

# ---- the product

plan: $(VENV)/.core ## run the main job: make plan ARGS="--gpus 1xRTX4090 --model 8B"
	@$(VENV)/bin/python -m compileall -q planner
	$(VENV)/bin/plan $(ARGS)

# ---- checks

lint: $(VENV)/.dev ## ruff and strict mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

test-transformers: $(HF)/.done
	$(OFFLINE) $(HF)/bin/python -m pytest -q -m transformers

# DeepSpeed compiles into a folder of our own, and waits for ever for a lock that a killed run has left there.
test-main: $(VENV)/.dev $(HF)/.done $(LF)/.done
	rm -f .envs/torch_extensions/*/lock
	$(OFFLINE) TORCH_EXTENSIONS_DIR=$(CURDIR)/.envs/torch_extensions VRAMPLAN_LF_PYTHON=$(CURDIR)/$(LF)/bin/python VRAMPLAN_HF_PYTHON=$(CURDIR)/$(HF)/bin/python $(VENV)/bin/python -m pytest -q -n 2 -m 'not transformers and not engines'
	$(OFFLINE) TORCH_EXTENSIONS_DIR=$(CURDIR)/.envs/torch_extensions VRAMPLAN_LF_PYTHON=$(CURDIR)/$(LF)/bin/python VRAMPLAN_HF_PYTHON=$(CURDIR)/$(HF)/bin/python $(VENV)/bin/python -m pytest -m engines

test: envs ## everything that CI runs; the main suite comes last
	$(MAKE) --no-print-directory lint
	$(MAKE) --no-print-directory test-transformers
	$(MAKE) --no-print-directory test-main

accuracy: $(VENV)/.dev ## predictions against published measurements: the terminal, docs/accuracy.md and accuracy-rows.md
	$(VENV)/bin/python tools/accuracy.py
	$(VENV)/bin/python tools/accuracy_page.py

# Other estimators contradict one another's requirements: each lives in an environment of its own, and accelerate in that
# of transformers. What they said is kept in measurements/peers.jsonl.
accuracy-peers: $(VENV)/.dev $(HF)/.done ## the same rows put to other estimators (network)
	mkdir -p $(PEERS)
	$(VENV)/bin/python tools/peer_questions.py > $(PEERS)/questions.jsonl
	$(HF)/bin/python tools/peer_answers.py $(PEERS)/questions.jsonl > $(PEERS)/answers.jsonl
	for tool in $(PEER_TOOLS); do \
	  home=$(PEERS)/$${tool%%==*}; \
	  test -x $$home/bin/python || $(PYTHON) -m venv $$home; \
	  $$home/bin/python -m pip install $(PIP_FLAGS) $$tool; \
	  $$home/bin/python tools/peer_answers.py $(PEERS)/questions.jsonl >> $(PEERS)/answers.jsonl; \
	done
	mv $(PEERS)/answers.jsonl measurements/peers.jsonl
	$(VENV)/bin/python tools/accuracy_page.py

accuracy-speed: $(VENV)/.dev ## predicted against published throughput, also of groups left out of the fit
	$(VENV)/bin/python tools/calibrate_speed.py

trace-matrix: $(HF)/.done ## trace every row of tests/data/traced.jsonl again (20 minutes and more)
	$(OFFLINE) OMP_NUM_THREADS=1 $(HF)/bin/python tools/trace_matrix.py

trace-published: $(HF448)/.done ## trace the published one-GPU rows in transformers 4.48 (10 minutes and more)
	$(OFFLINE) OMP_NUM_THREADS=1 $(HF448)/bin/python tools/trace_published.py

bench: $(VENV)/.dev ## time of the main job and of a wide search, rate of `plan estimate --from`, what `plan run` takes
	@$(VENV)/bin/python -m compileall -q planner
	$(VENV)/bin/python tools/time_plan.py
	$(VENV)/bin/python tools/time_run.py

# On a machine with an NVIDIA GPU, with the Python that has torch, transformers, peft and accelerate.
gpu-bench: ## measure real training steps on this GPU: make gpu-bench ARGS="--cap 24" PYTHON=python3
	$(PYTHON) bench/gpu_peaks.py $(if $(filter command line environment,$(origin ARGS)),$(ARGS))

screenshot: $(VENV)/.dev ## docs/screen.svg from the real screen
	$(VENV)/bin/python tools/screenshot.py

docs: $(VENV)/.dev ## docs/cli.md from the commands' own help
	$(VENV)/bin/python tools/gen_docs.py

clean: ## remove environments and caches, never plans
	rm -rf $(VENV) .envs build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
