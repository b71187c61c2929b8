# Needs Python 3.11 to 3.13, make, bash and git; everything else is installed into .venv by the first target.
#   make demo [ARGS=--compare]     make test [ARGS='-k codec']     make venv PY=python3.12
SHELL := bash
PY ?= python3
ARGS ?=
V := .venv/bin

# flwr reads these before fedward is imported: no telemetry, no update check, no installs at run time
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
VERSION := import sys; print(sys.version.split()[0])
comma := ,
complain = { echo "fedward: error: $(1)" >&2; echo "hint: $(2)" >&2; exit 2; }

.PHONY: venv demo test soak check bench clean

venv: .venv/.done

# .venv/.installing stays behind when an installation did not end: then nothing in .venv is trusted, and it is made
# again. The same goes for a .venv of an unsupported Python, or without a pip that starts.
.venv/.done: pyproject.toml constraints.txt
	@if [ ! -e .venv/.installing ] && $(V)/python -c '$(SUPPORTED)' 2>/dev/null \
	    && $(V)/python -m pip --version >/dev/null 2>&1; then exit 0; fi; \
	command -v $(PY) >/dev/null \
	  || $(call complain,there is no $(PY),install Python 3.11 to 3.13$(comma) or name one: make $(or $(MAKECMDGOALS),venv) PY=python3.12); \
	$(PY) -c '$(SUPPORTED)' 2>/dev/null \
	  || $(call complain,$(PY) is Python $$($(PY) -c '$(VERSION)') but fedward needs 3.11 to 3.13,name another one: make $(or $(MAKECMDGOALS),venv) PY=python3.12); \
	$(PY) -c 'import venv$(comma) ensurepip' 2>/dev/null \
	  || $(call complain,$(PY) cannot make virtual environments,install its venv package: apt install python3-venv$(comma) or dnf install python3-pip); \
	echo "$(PY) -m venv .venv"; $(PY) -m venv --clear .venv
	@touch .venv/.installing
	$(V)/python -m pip install -c constraints.txt -e '.[dev]'
	@rm .venv/.installing && touch $@

demo: venv
	$(V)/fedward-sim demo $(ARGS)

# two files of tests at a time, in the order of their names. Threads that wait must not spin: tests share the cores with
# each other and with the processes that they start
test: export OMP_WAIT_POLICY := PASSIVE
test: export OMP_NUM_THREADS := 1
test: venv
	$(V)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

# half an hour of kills and cuts on a real federation; not part of the suite
soak: export OMP_WAIT_POLICY := PASSIVE
soak: venv
	$(V)/python -m pytest -s tests/deployment/soak.py $(ARGS)

check: venv
	$(V)/ruff format --check .
	$(V)/ruff check .
	$(V)/mypy
	$(V)/lint-imports

bench: venv
	$(V)/python -m fedward_simulations.bench $(ARGS)

# caches and build output; .venv and runs stay
clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find common client server simulations tests -name __pycache__ -type d -prune -exec rm -rf {} +
