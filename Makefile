# Two commands do everything: `make run` and `make test`. The rest is for developers.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run torch test docs studies lint types bench bench-privacy soak fuzz demo-federated chaos many-agents lock clean

run: $(VENV)/ready ## the first study: real patients, simulated hospitals
	$(BIN)/fedrounds run studies/diabetes --fresh

torch: $(VENV)/torch ## PyTorch, for models of kind "module" (docs/torch.md)

test: $(VENV)/ready $(VENV)/torch ## the whole suite
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

docs: $(VENV)/ready ## the documentation as a site, into build/docs; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/ready
	$(BIN)/pyright

studies: $(VENV)/ready ## the five ready studies, each to a champion and a report; writes their pages in docs/
	$(BIN)/python benchmarks/studies.py --write

bench: $(VENV)/ready ## speed, as ratios; writes docs/benchmarks.md
	$(BIN)/python benchmarks/bench.py

bench-privacy: $(VENV)/ready ## masks, noise, encryption, rotation, groups, the log, a year under one budget; writes docs/privacy-*.md
	$(BIN)/python benchmarks/privacy_masks.py
	$(BIN)/python benchmarks/privacy_dp.py
	$(BIN)/python benchmarks/privacy_scores.py
	$(BIN)/python benchmarks/privacy_ckks.py
	$(BIN)/python benchmarks/privacy_rotation.py
	$(BIN)/python benchmarks/privacy_groups.py
	$(BIN)/python benchmarks/privacy_log.py
	$(BIN)/python benchmarks/privacy_year.py

soak: $(VENV)/ready ## the long tests in full; writes docs/soak.md
	$(BIN)/python benchmarks/soak.py

fuzz: $(VENV)/ready ## hostile bytes against everything that reads them; writes docs/fuzz.md
	$(BIN)/python benchmarks/fuzz.py

demo-federated: $(VENV)/ready ## a coordinator and four hospitals, really apart, on this machine
	$(BIN)/python benchmarks/demo_federated.py --write

chaos: $(VENV)/ready ## kill everything at every moment; writes docs/chaos.md
	$(BIN)/python benchmarks/chaos.py

many-agents: $(VENV)/ready ## fifty agents against one coordinator; writes docs/many-agents.md
	$(BIN)/python benchmarks/many_agents.py

lock: ## resolve pyproject.toml anew into requirements.lock
	rm -rf $(VENV)-lock
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet ".[dev]"
	$(VENV)-lock/bin/python -m pip freeze --all --exclude pip --exclude fedrounds | grep -E '^[A-Za-z0-9._-]+==' | sort -f > requirements.lock
	rm -rf $(VENV)-lock

clean:
	rm -rf $(VENV) build *.egg-info

$(VENV)/ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "expected Python 3.11 to 3.13, found %d.%d: set PYTHON=python3.12, say" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	mkdir -p $(VENV)/view/fedrounds && ln -sfn ../../../core $(VENV)/view/fedrounds/core
	touch $@

$(VENV)/torch: requirements-torch.lock $(VENV)/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-torch.lock
	touch $@
