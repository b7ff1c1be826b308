# Needs only make and Python 3.11, 3.12 or 3.13: everything is installed into .venv, at the versions of constraints.txt.
# `make help` lists the targets; PYTHON=/path/to/python3.12 selects the interpreter.

SHELL := /bin/sh
VENV := .venv
PY := $(VENV)/bin/python
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(PY) -m pip install --quiet --constraint constraints.txt
BASE := $(VENV)/base.stamp
DEV := $(VENV)/dev.stamp
USABLE := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
WORKERS := 2
OUT := bench-out
PEER := bench-out/peer-venv
PHOTOS :=
CLIPS :=
MINUTES := 5
PROGRAMS := chromium redis-server

.DEFAULT_GOAL := help

.PHONY: help demo test system bench peer lint clean

help: ## List the targets.
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile | expand -t 16

demo: $(BASE) ## Predict the expression in a real photo with the default model (base install only).
	@$(PY) -m ferkit predict examples/astronaut.jpg --annotate demo-out

# Each worker gets half of the tests in order, so that fixtures of a module are mostly made once; a worker that is done
# takes tests from the other. WORKERS=0 runs all in one process.
test: $(DEV) system ## Run every test, with coverage; the last lines say what was skipped.
	$(PY) -m pytest -n $(WORKERS) --dist worksteal --cov --cov-report=term

# The page is tested in Chromium, the queue of several machines with Redis.
system:
	@for program in $(PROGRAMS); do \
		command -v $$program >/dev/null && continue; \
		echo "Installing $$program for the tests ..."; \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$program; } \
			>/dev/null 2>&1 || echo "NOT INSTALLED: $$program; the tests that need it are skipped" >&2; \
	done

# OUT=results/bench PHOTOS='--photo a.jpg' CLIPS='a.mp4 b.mov --data fer2013.csv.gz' MINUTES=60 measures more.
bench: $(BASE) ## Measure start-up, memory, speed, video, batches, and the package fer; writes bench-out/.
	$(PY) benchmarks/bench.py --out $(OUT) $(PHOTOS)
	$(PY) benchmarks/peer.py --out $(OUT) --peer-venv $(PEER) $(PHOTOS)
	$(PY) benchmarks/video.py --out $(OUT) --minutes $(MINUTES) $(CLIPS)
	$(PY) benchmarks/batch.py --out $(OUT) --peer-venv $(PEER) $(PHOTOS)

peer: $(BASE) ## Install the package fer for make bench into its own environment (5 GiB).
	$(PY) benchmarks/peer.py --make-venv --peer-venv $(PEER)

lint: $(DEV) ## Check style, format, types and import contracts.
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

clean: ## Remove the output of builds, tests, demo and bench; .venv and runs/ stay.
	rm -rf build dist demo-out bench-out fuzz-out htmlcov .coverage .coverage.* \
		.pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# A dangling link (an interpreter that was removed) counts as absent, so the environment is created again.
$(PY):
	@python= ; \
	for candidate in $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python); do \
		if $$candidate -c '$(USABLE)' 2>/dev/null; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
		echo "error: no Python 3.11, 3.12 or 3.13 with the modules venv and ensurepip was found$(if $(PYTHON), at $(PYTHON))." >&2; \
		echo "Install one (Debian, Ubuntu: apt-get install python3 python3-venv) or name it: make PYTHON=/path/to/python3.12" >&2; \
		exit 1; \
	fi; \
	echo "Making $(VENV) with $$($$python --version) ..."; \
	$$python -m venv --clear $(VENV)

# The build backend is installed first, at its pinned version: a build in isolation would not be pinned.
$(BASE): pyproject.toml constraints.txt | $(PY)
	@echo "Installing ferkit's base ..."
	@$(PIP) hatchling editables
	@$(PIP) --no-build-isolation --editable .
	@$(PY) -c 'import cv2' 2>/dev/null || { $(PY) -m ferkit doctor; exit 1; }
	@touch $@

$(DEV): $(BASE)
	@echo "Installing every extra and the development tools, TensorFlow among them (takes minutes) ..."
	@$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@
