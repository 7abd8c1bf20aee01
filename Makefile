# Targets: setup demo test test-faults test-image test-transformers4 lint bench bench-peers docs. Each sets up what it needs, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# uv does not read pip's settings: pass on where local wheels are, if that is set.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
export UV_NO_PROGRESS := 1
# Whole files to each of two processes, in the order of tests/conftest.py.
SHARED_OUT := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: setup demo test pytest test-faults test-image test-transformers4 lint bench bench-peers docs clean
setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	$(BIN)/uv pip install --quiet $(if $(PYTHONDONTWRITEBYTECODE),--compile-bytecode) --python $(BIN)/python -c constraints.txt -e '.[train,unsloth,sources,gguf,web,notify,ray,dev]'
	$(if $(PYTHONDONTWRITEBYTECODE),$(BIN)/python -m compileall -q appliance datasets_src)
	touch $@

demo: setup
	$(BIN)/appliance demo

test: lint pytest

pytest: setup
	$(BIN)/python -m pytest $(SHARED_OUT)

test-faults: setup
	$(BIN)/python -m tests.whole_runs.faults 100
	$(BIN)/python -W ignore -m tests.fuzz 500

test-image: setup
	TEST_IMAGE=1 $(BIN)/python -m pytest tests/image $(SHARED_OUT)

# transformers 4, as users have it, beside the torch of $(VENV)
OLDER := .venv-transformers4
test-transformers4: $(OLDER)/.installed
	TEST_TRANSFORMERS4=$(OLDER)/bin/python $(BIN)/python -m pytest tests/transformers4 -p no:xdist

$(OLDER)/.installed: tests/transformers4/requirements.txt $(VENV)/.installed
	$(BIN)/python -m tests.transformers4.environment $(OLDER)
	touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m benchmarks

# LLaMA-Factory and axolotl, each in an environment of its own below PEERS
PEERS := .venv-peers
bench-peers: setup
	$(BIN)/python -m benchmarks.peers --environments $(PEERS)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.peers.vocabulary

docs: setup
	$(BIN)/python -m tests.project.generated

clean:
	rm -rf $(VENV) $(OLDER) $(PEERS) build dist *.egg-info
