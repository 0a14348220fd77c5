# The words that a newcomer, a developer and CI all use. Every target can be repeated; what is done is not done again.
# Another Python: `make demo PYTHON=python3.12`. Where pip looks for packages is pip's own configuration, not ours.
.POSIX:
.PHONY: setup demo test lint bench bench-train clean

PYTHON = python3
VENV = .venv
BIN = $(VENV)/bin
TORCH = torch==2.13.0
PIP = $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
PINS = $(VENV)/.made pyproject.toml constraints.txt

setup: $(VENV)/.installed-dev

demo: $(VENV)/.installed
	$(BIN)/lowtax run recipes/quickstart.yaml --out runs/quickstart

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS="$${OMP_NUM_THREADS:-1}" $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-bench
	$(BIN)/python bench/help_time.py
	$(BIN)/python bench/train_cpu.py
	$(BIN)/python bench/mixed_adapters.py

bench-train: $(VENV)/.installed-bench
	$(BIN)/python bench/train_cpu.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "There is no $(PYTHON) here: lowtax needs Python 3.11 or newer; install it, or name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "lowtax needs Python 3.11 or newer, but $(PYTHON) is $$($(PYTHON) --version 2>&1); name another: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# torch first and alone: the largest download by far, and the one whose build (CPU or CUDA) a user may want to choose.
$(VENV)/.installed: $(PINS)
	$(PIP) '$(TORCH)'
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: $(PINS)
	$(PIP) '$(TORCH)'
	$(PIP) -e '.[dev]'
	@touch $@

$(VENV)/.installed-bench: $(PINS)
	$(PIP) '$(TORCH)'
	$(PIP) -e '.[bench]'
	@touch $@
