# Two commands for a fresh machine, which needs nothing but Python 3.11 to 3.13, pip and make:
#   make demo    data, training, segmenting, evaluation, a query and a report, in five minutes
#   make test    every test
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test docs check format lint types schemas chaos chaos-model fuzz soak bench clean

# Threads that wait without spinning: beside a busy neighbour spinning ones make training many times slower.
demo: $(READY)
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m raymask.demo

# Most tests wait for processes to begin, so two cores have room for two of them at once.
# Those of killed runs and of the time of stages have the machine to themselves: they say how long something may take.
ALONE := tests/test_chaos.py tests/test_inside.py
test: $(READY)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile $(ALONE:%=--ignore %)
	$(BIN)/python -m pytest -q $(ALONE)

check: lint types docs test

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

# The documentation site, into build/site/; any warning is an error.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

schemas: $(READY)
	$(BIN)/python schemas/generate.py

# Workers, machines, drivers and whole clusters killed while they segment; under half an hour on two cores.
chaos: $(READY)
	$(BIN)/python tests/chaos.py --runs 20

# Drivers and workers of an output's protocol, over a store in memory, in random trouble; four minutes on one core.
chaos-model: $(READY)
	$(BIN)/python tests/chaos_model.py --schedules 100000

# Damaged files of every format through the sandbox of the decoder; four minutes on one core.
fuzz: $(READY)
	$(BIN)/python tests/fuzz_images.py --count 100000

# A run over a bucket on this machine for ten minutes, 5 % of its requests in trouble: memory and open files stay flat.
soak: $(READY)
	$(BIN)/python tests/soak.py --minutes 10

# The benchmarks that two cores do in twenty minutes; `benchmarks/gpu.py` needs a GPU.
bench: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,bench]'
	$(BIN)/python benchmarks/masks.py
	$(BIN)/python benchmarks/mask_functions.py
	$(BIN)/python benchmarks/model.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/pipeline.py --photos 40 --slow-photos 20 --null-photos 8000
	$(BIN)/python benchmarks/chart.py
	$(BIN)/python benchmarks/readme.py

clean:
	rm -rf $(VENV) demo-output

# The constraints are the versions that the tests last passed with; pyproject.toml says which others are meant to work.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
