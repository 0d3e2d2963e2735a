# "make demo" and "make test" both install everything first; they need Python 3.10 or newer.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install test slow stress gpu gpu-fake lint docs demo benchmarks clean

install: .venv/installed

.venv/installed: pyproject.toml hatch_build.py
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

# TESTS chooses by marker; nothing chooses all tests, which share what they have in common and leave no process idle.
TESTS ?= not slow
test: install
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "$(TESTS)"

slow:
	$(MAKE) test TESTS=slow

stress: install
	$(BIN)/python -m pytest tests/stress

gpu: install
	$(BIN)/python -m pytest tests/gpu --record gpu.json

gpu-fake: install
	$(BIN)/python -m pytest tests/gpu --fake --record gpu_dry_run.json

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

demo: install
	$(BIN)/nnunet_kd demo --out demo

benchmarks: install
	$(BIN)/python benchmarks/dcd_loss.py
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/memory_layout.py
	$(BIN)/python benchmarks/teacher_precision.py
	$(BIN)/python benchmarks/start_up.py

clean:
	rm -rf .venv demo dist site
