# diffusion-harness. `make demo` and `make test` need nothing but Python 3.11 or newer; they set everything up themselves.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
JOBS   ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
# One more than cores: tests often wait for servers, jobs and processes that were killed.
TEST_JOBS ?= $(shell expr $(JOBS) + 1)
PORT   ?= 5000
STUDY  ?= experiments/laptop/iddpm_digits.yaml

# The tests start hundreds of interpreters, each of which would otherwise compile all sources.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo claims test faults check figures ui bench bench-peers bench-devices lowest lock clean

help:  ## Show what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

setup: $(VENV)/.installed  ## Install everything into .venv (does nothing when it is up to date)

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make setup PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): a few minutes at the first time"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup  ## Run a real ablation on digits, from YAML to figures/index.html (about 10 minutes)
	$(BIN)/harness submit $(STUDY) --cluster local --jobs $(JOBS)
	$(BIN)/harness figures
	@echo "Look at figures/index.html, and compare the runs with: make ui"

# A run that fails is a result, so the next study goes on; a mistake in a file, or Ctrl-C, ends it.
claims: setup  ## Run the laptop studies behind the papers' claims (about two hours; goes on where it was), and draw the card
	@for study in experiments/claims/*.yaml; do \
		$(BIN)/harness submit $$study --cluster local --jobs $(JOBS) || test $$? -eq 1 || exit 1; \
	done
	$(BIN)/harness figures
	$(BIN)/harness claims

test: setup  ## Run all tests
	$(BIN)/python -m pytest -n $(TEST_JOBS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder

faults: setup  ## Kill a training a hundred times, break servers and disks under it, and print the figures
	KILLS=100 $(BIN)/python -m pytest -q tests/system/faults tests/component/job/test_verify.py \
		tests/component/methods/test_adversarial.py

check: setup  ## Format, lint, types and the unit tests: about a minute
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -n $(JOBS) -m "not slow and not slurm and not gpu" tests/unit

figures: setup  ## Draw the figures whose records in runs/ have changed
	$(BIN)/harness figures

ui: setup  ## Open MLflow's UI on this machine (PORT=5000)
	$(BIN)/harness ui --port $(PORT)

bench: setup  ## Measure what things cost, as ratios
	$(BIN)/python -m benchmarks.run
	$(BIN)/python -m benchmarks.report
	$(BIN)/python -m benchmarks.mlflow

bench-peers: setup  ## Measure training, sampling, NLL and start beside other libraries, into benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks.peers --write

bench-devices: setup  ## Measure several processes and data, and project them to many GPUs, into benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks.devices --write

lowest:  ## Run the unit tests, tracking and search with the lowest versions that pyproject.toml promises
	@test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	$(PYTHON) .ci/lowest.py > .venv-lowest/requirements.txt
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check -r .venv-lowest/requirements.txt
	PYTHONPATH=. .venv-lowest/bin/python -m pytest -q -n $(JOBS) -m "not slow and not slurm and not gpu" \
		tests/unit tests/component/tracking tests/component/search

lock:  ## Make constraints.txt again: what pip resolves today, in a fresh environment
	rm -rf .venv-lock
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	.venv-lock/bin/python .ci/lock.py > .venv-lock/constraints.txt
	mv .venv-lock/constraints.txt constraints.txt
	rm -rf .venv-lock

clean:  ## Remove the virtual environments and caches (runs and figures stay)
	rm -rf $(VENV) .venv-lowest .venv-lock .venv-peers .pytest_cache .ruff_cache .mypy_cache .hypothesis
