# make demo and make test set everything up by themselves; the first run installs, later ones don't.
PYTHON ?= python3
# "newest", or "oldest": the one that pyproject.toml declares.
JAX ?= newest
BIN := .venv/bin
CONSTRAINTS := constraints.txt constraints-$(JAX).txt
# Bytecode is left to the first import, since of 10,000 files a quarter is ever imported.
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile $(CONSTRAINTS:%=--constraint %)
READY := .venv/.ready-$(JAX)
DOCS_READY := .venv/.docs-ready
# A file stays in one process, which compiles what its tests share once; the longest, README.md, comes first.
PYTEST := $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder
PYTEST_ARGS ?= -m "not slow"

.PHONY: demo test coverage lint notebooks docs clean

demo: $(READY)
	$(BIN)/ntk-inr compare camera --size 48 --steps 300 --seeds 2 --features 128 --depth 3 --out runs/demo --overwrite \
		--variant relu pe pe+sphere pe+hadamard pe+sphere+hadamard siren

# Most of the tests' time is compilation, which these make many times faster; make test XLA_FLAGS= tests programs
# optimised as users run them.
test: export XLA_FLAGS ?= --xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1 \
	--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters
test: $(READY)
	$(PYTEST) $(PYTEST_ARGS)

coverage: $(READY)
	$(PYTEST) --cov=ntk_inr --cov-report=term

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Runs each notebook and writes its outputs beside it.
notebooks: $(READY)
	$(BIN)/jupytext --set-formats py:percent,ipynb --sync notebooks/*.py
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace notebooks/*.ipynb

# Builds the pages in docs/_build/html; a warning is an error.
docs: $(DOCS_READY)
	$(BIN)/sphinx-build --write-all --fail-on-warning --keep-going --quiet docs docs/_build/html
	@echo "Open docs/_build/html/index.html"

$(READY): pyproject.toml $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	rm -f .venv/.ready* .venv/.docs-ready
	$(INSTALL) --editable ".[report,test]"
	# Without what its metadata asks for: TensorFlow and tf2jax, which nothing here uses.
	$(INSTALL) --no-deps neural-tangents
	touch $@

$(DOCS_READY): $(READY)
	$(INSTALL) --editable ".[docs]"
	touch $@

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache dist docs/_build docs/_generated docs/notebooks
