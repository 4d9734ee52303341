# The front door. `make demo` and `make test` need nothing but Python 3.11 and this folder.
# On Windows, README.md has the same as plain pip lines.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
CUDA   ?= cuda13# for drivers older than R580: make test-gpu CUDA=cuda12

# What `make check` runs after the tests, one name a step.
REST := lint types slow bounds plain simulator doctest docs

.DEFAULT_GOAL := help
.PHONY: help demo test check steps $(REST) compile-cuda emulate-cuda test-gpu bench-gpu oracle browser format clean

help:  ## say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --- for users ------------------------------------------------------------------------------

demo: $(VENV)/ready-run  ## train a dilated network on handwriting and draw what it learnt
	$(BIN)/tinydilate train $(if $(wildcard runs/demo/config.toml),--resume)

test: $(VENV)/ready-test  ## the tests, five to ten minutes
	$(BIN)/python -m pytest

# --- for developers -------------------------------------------------------------------------

check: test $(REST)  ## everything: the tests, then all of these

steps:
	@echo $(REST)

lint: $(VENV)/ready-dev  ## ruff: format and rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/ready-dev  ## mypy, strict
	$(BIN)/mypy

slow: $(VENV)/ready-dev  ## the tests that `make test` leaves out for their length
	$(BIN)/python -m pytest -m "slow and not gpu and not oracle and not browser"

bounds: $(VENV)/ready-dev  ## the op tests with every array index checked
	NUMBA_BOUNDSCHECK=1 $(BIN)/python -m pytest tests/test_ops.py

plain: $(VENV)/ready-dev  ## a few tests without compiling: every line of every loop has to run
	$(BIN)/python scripts/plain_python.py -q

simulator: $(VENV)/ready-dev  ## the CUDA kernels in Numba's simulator
	NUMBA_ENABLE_CUDASIM=1 $(BIN)/python scripts/simulate.py

compile-cuda: $(VENV)-cuda/ready-$(CUDA)  ## the CUDA kernels compiled for sm_75, 80 and 90, without a GPU (a large download)
	$(VENV)-cuda/bin/python scripts/compile_kernels.py

emulate-cuda: $(VENV)-cuda/ready-$(CUDA)  ## the GPU tests on what the compiler made of the kernels, run in NumPy
	TINYDILATE_EMULATED_GPU=1 $(VENV)-cuda/bin/python -m pytest -m "gpu and not slow" -n 2

# GPU_PYTHON names a Python that has numba-cuda, pytest and hypothesis; nothing is installed then.
test-gpu: $(if $(GPU_PYTHON),,$(VENV)-cuda/ready-$(CUDA))  ## on a GPU: everything that only a GPU can show, under eight minutes
	$(or $(GPU_PYTHON),$(VENV)-cuda/bin/python) scripts/test_gpu.py --json test_gpu.json

doctest: $(VENV)/ready-dev  ## the examples in the docstrings
	$(BIN)/python -m pytest --doctest-modules --ignore tinydilate/__main__.py tinydilate

docs: $(VENV)/ready-dev  ## the documentation, tutorials executed: docs/_build/html/index.html
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

oracle: $(VENV)/ready-oracle  ## compare with PyTorch and ONNX (a large download)
	$(BIN)/python -m pytest -m oracle

browser: $(VENV)/ready-browser  ## drive the interactive page in a headless Chromium (a large download if there is none)
	$(BIN)/python -m pytest -m browser

bench-gpu: $(if $(GPU_PYTHON),,$(VENV)-cuda/ready-$(CUDA))  ## on a GPU with PyTorch: speed beside it, under six minutes
	$(or $(GPU_PYTHON),$(VENV)-cuda/bin/python) benchmarks/gpu.py --json gpu.json

format: $(VENV)/ready-dev  ## let ruff rewrite what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## delete what was built; the virtual environment and runs/ stay
	rm -rf build dist docs/_build docs/api docs/ops docs/tutorials docs/fields_* .mypy_cache .pytest_cache .ruff_cache

# --- the virtual environment ----------------------------------------------------------------
# Each stamp says which extras are installed; a newer pyproject.toml makes it out of date.

$(VENV)/ready-venv:
	@command -v $(PYTHON) >/dev/null || \
	  { echo "Expected a Python 3.11 or later as '$(PYTHON)'; there is none. Install it, or name yours: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit("Expected Python 3.11 or later; $(PYTHON) is %d.%d. Name a newer one: make PYTHON=python3.13" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/ready-run: pyproject.toml | $(VENV)/ready-venv
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/ready-test: pyproject.toml | $(VENV)/ready-venv
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	@touch $@ $(VENV)/ready-run

$(VENV)/ready-dev: pyproject.toml | $(VENV)/ready-venv
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@ $(VENV)/ready-test $(VENV)/ready-run

$(VENV)/ready-oracle: pyproject.toml | $(VENV)/ready-venv
	$(BIN)/python -m pip install --quiet --editable ".[test,oracle]"
	@touch $@ $(VENV)/ready-test $(VENV)/ready-run

$(VENV)/ready-browser: pyproject.toml | $(VENV)/ready-venv
	$(BIN)/python -m pip install --quiet --editable ".[test,browser]"
	@command -v chromium chromium-browser google-chrome >/dev/null || $(BIN)/python -m playwright install chromium
	@touch $@ $(VENV)/ready-test $(VENV)/ready-run

# Numba's CUDA target has an environment of its own: with it, the simulator would be another.
$(VENV)-cuda/ready-$(CUDA): pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)-cuda
	$(VENV)-cuda/bin/python -m pip install --quiet --editable ".[test,$(CUDA)]" nvidia-cuda-nvdisasm pytest-xdist
	@touch $@
