# What a person types and what CI runs. PYTHON chooses the interpreter, VENV the environment's folder.
PYTHON ?= python3
VENV ?= .venv
# Tests run in so many processes, each file in one of them.
WORKERS ?= 2
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-quick torch libtpu lint bench smoke clean

demo: $(VENV)/ready  ## GoogLeNet learns handwritten digits
	$(BIN)/python -m inception_jax.main --config=configs/digits.py --workdir=runs/demo

test: $(VENV)/ready-dev  ## every test
	$(PYTEST)

test-quick: $(VENV)/ready-dev  ## all but those that take minutes
	$(PYTEST) -m "not slow"

torch: $(VENV)/ready-dev  ## PyTorch, so that the tests against it are not skipped
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-torch.txt

libtpu: $(VENV)/ready  ## the TPU compiler, for plans of pods; outside the environment, as else jax
# would take this machine for one with TPUs
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
	  --target .libtpu "$$($(BIN)/python -c \
	  'from inception_jax.plan import topology; print(topology.requirement())')"

lint: $(VENV)/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(VENV)/ready  ## side-by-side measurements; see benchmarks/
	$(BIN)/python -m benchmarks.input
	$(BIN)/python -m benchmarks.max_pool
	$(BIN)/python -m benchmarks.huge_pages --config=configs/fashion_mnist.py

smoke: $(VENV)/ready  ## the main job for an epoch, to the end
	rm -rf runs/smoke$(notdir $(VENV))
	$(BIN)/python -m inception_jax.main --config=configs/digits.py --workdir=runs/smoke$(notdir $(VENV)) \
	  --config.epochs=1 --config.schedule.warmup_epochs=0

clean:
	rm -rf .venv* runs .pytest_cache .ruff_cache

$(VENV)/ready: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/ready-dev: requirements-dev.txt $(VENV)/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@
