# Everything that one does with the project; `make` alone lists it.
# PYTHON=python3.13 chooses the Python of .venv; without it, the first one found that was tested.
# VENV=folder uses an environment of your own: its torch, numpy and ipywidgets stay unchanged.
TESTED := (3, 10) <= sys.version_info < (3, 14)
PYTHON ?= $(or $(shell for p in python3 python3.13 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(not $(TESTED))' 2>/dev/null && echo $$p && break; done),python3)
SWITCH := $(if $(filter command environment,$(firstword $(origin PYTHON))),--switch)
VENV ?= .venv
PY := "$(VENV)/bin/python"
TEST_LIMIT ?= 60m
# pytest's options that share the tests out to up to four cores; with ARGS="-n 0 ..." they run in one process.
SHARED_OUT := -n logical --maxprocesses 4 --dist loadgroup --no-loadscope-reorder
# Many containers forbid Python to keep compiled files; torch would then be compiled at each start, which takes seconds.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup train test lab notebooks colab-test pictures badges bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## make .venv with all that is needed (once; the other targets do it too)
	@command -v "$(PYTHON)" >/dev/null || { echo "There is no $(PYTHON) here: name another Python with PYTHON=." >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "$(PYTHON) is older than Python 3.10: name a newer one, as in: make setup PYTHON=python3.13" >&2; exit 2; }
	@"$(PYTHON)" tools/setup_env.py --venv "$(VENV)" $(SWITCH)

train: setup  ## train the quick preset, evaluate it, write its report and video (ARGS="--seed 1 ...")
	@$(PY) -m ppo_lib train --preset quick --finish $(ARGS)

test: setup  ## check the style and run all tests (ARGS="-k storage ...")
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	timeout --foreground $(TEST_LIMIT) $(PY) -m pytest -q $(SHARED_OUT) $(ARGS)

lab: setup  ## open the notebooks in JupyterLab
	$(PY) -m jupyterlab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks/

notebooks: setup  ## run all notebooks again, in place
	$(PY) tools/notebooks.py $(ARGS)

pictures: setup  ## make the README's figures and animation
	$(PY) tools/pictures.py $(ARGS)

colab-test: setup  ## run all notebooks on Colab's Python and package versions
	$(PY) tools/colab_test.py $(ARGS)

badges: setup  ## write the repository's address into badges and bootstrap cells (REPO=owner/name)
	$(PY) tools/badges.py $(REPO)

bench: setup  ## measure steps per second on this machine, by part
	$(PY) -m ppo_lib bench $(ARGS)

clean:  ## remove .venv and caches; runs and videos stay
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
