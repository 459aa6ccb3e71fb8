# Each target makes what it needs; `make quickstart`, `make test` and `make check` work in a fresh clone.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
SEED   ?= 0
KILLS  ?= 20
MODEL  ?= models/darkroom-student

.PHONY: setup quickstart demo smoke test faults check format clean

setup: $(STAMP)

# Reinstalled only when what is asked for has changed. An existing $(VENV) is kept and brought up to date.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
	  { echo "$(PYTHON) is $$($(PYTHON) -V); Python 3.11, 3.12 or 3.13 is needed: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

quickstart: $(STAMP)
	$(BIN)/accelerate launch --quiet --num_cpu_threads_per_process 1 \
	  --config_file configs/accelerate/cpu.yaml -m pipelines.run --config configs/quickstart.yaml
	@echo
	@echo "table:  runs/quickstart/comparison/table.md"
	@echo "plot:   runs/quickstart/comparison/learning_curves.png"

# A trained model (MODEL: its folder, or a run's) learns a held-out task in the terminal; nothing is trained.
demo: $(STAMP)
	$(BIN)/python -m pipelines.demo --model $(MODEL)

# Every stage through its real command, at the smallest size that runs at all.
smoke: $(STAMP)
	.ci/smoke $(BIN)

test: $(STAMP)
	$(BIN)/python -m pytest -q -m 'not gpu and not machine' -n auto --maxprocesses 8 --dist loadfile

# Hostile configurations, files, families and compressors, full disks, signals at random moments, lost machines: half an
# hour. KEEP=file goes on where it was stopped.
faults: $(STAMP)
	$(BIN)/python -m tests.faults.run --seed $(SEED) --kills $(KILLS) $(if $(KEEP),--keep $(KEEP))
	$(BIN)/python -m pytest -q -m machine tests/faults

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/python -m pipelines.describe --check docs/configuration.md

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python -m pipelines.describe docs/configuration.md
	$(BIN)/python -m reports.column_list
	$(BIN)/python -m reports.published README.md docs/results/*.md

clean:
	rm -rf build *.egg-info .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
