# make demo: the whole chain on simulated patients.  make federate: three simulated hospitals, apart and together.  make page: try its champion in a browser.  make test: the tests.  make portable: those of numbers, as on an older processor.  make check: format, lint, types, contracts.  make docs: the pages as a site that can be searched.
PYTHON ?= python3
BIN := .venv/bin
UV := $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python
NUMERICAL := tests/equivalence/test_processes.py tests/regression/test_kept_files.py \
  $(patsubst %,tests/unit/test_%.py,augment engine evaluation inference losses models prediction serving windows)
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: demo federate page test portable check format docs lock slow bench clean

demo: .venv/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" python pipeline.py

federate: .venv/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" python pipeline.py federate --config configs/federate.yaml

test: .venv/installed-dev
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=

portable: .venv/installed-dev
	ONEDNN_MAX_CPU_ISA=SSE41 ATEN_CPU_CAPABILITY=default \
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder $(NUMERICAL)

slow: .venv/installed-dev
	$(BIN)/python -m pytest -m slow

check: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/contract

format: .venv/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: .venv/installed-docs
	$(BIN)/zensical build --strict --config-file mkdocs.yml

page: .venv/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" python -m steps.demo_page

bench: .venv/installed
	$(BIN)/python -m benchmarks.chain

lock: .venv/uv
	$(BIN)/uv pip compile --quiet --universal --no-header --no-emit-index-url --python-version 3.11 --group run -o requirements.txt
	$(BIN)/uv pip compile --quiet --universal --no-header --no-emit-index-url --python-version 3.11 --group dev -c requirements.txt -o requirements-dev.txt

	$(BIN)/uv pip compile --quiet --universal --no-header --no-emit-index-url --python-version 3.11 --group docs -c requirements.txt -o requirements-docs.txt

clean:
	rm -rf site .venv .coverage* .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/uv:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	touch $@

.venv/installed: requirements.txt | .venv/uv
	$(UV) -r requirements.txt
	touch $@

.venv/installed-docs: requirements-docs.txt .venv/installed
	$(UV) -r requirements.txt -r requirements-docs.txt
	touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	$(UV) -r requirements.txt -r requirements-dev.txt
	touch $@
