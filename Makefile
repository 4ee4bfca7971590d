# A bare machine needs Python 3.11 or newer, git and make; the first call builds .venv, later ones only use it.
.DEFAULT_GOAL := help
.PHONY: help figures gallery test bench cluster browser colab lock dist clean

VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# What gives figures their words in HTML: see alt_text.py beside it.
NBCONVERT := lib/prunelab/jupyter_nbconvert_config.json

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile

figures: $(STAMP) ## train the smoke profile here, then draw every figure from the shipped records
	$(BIN)/prunelab figures --profile smoke --fresh
	$(BIN)/prunelab figures

gallery: $(STAMP) ## write the notebooks as a site to read without running them: build/gallery/index.html
	$(BIN)/prunelab gallery

test: $(STAMP) ## lint, unit tests, notebooks against their committed outputs, a fresh smoke run
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadscope --no-loadscope-reorder \
	    --nbval --nbval-current-env --nbval-cell-timeout 600 --nbval-sanitize-with tests/nbval_sanitize.cfg tests notebooks

bench: $(STAMP) ## measure the speed claims on this machine
	$(BIN)/prunelab bench

cluster: $(STAMP) ## install Ray, and test plans on a cluster of two nodes on this machine
	$(BIN)/uv pip install --no-build-isolation --compile-bytecode --python $(BIN)/python -e '.[cluster]'
	$(BIN)/python -m pytest tests/test_ray_workers.py

browser: $(STAMP) ## install Playwright, and read notebooks and gallery in Chromium
	$(BIN)/uv pip install --no-build-isolation --python $(BIN)/python -e '.[browser]'
	$(BIN)/python -m pytest -m browser tests/test_browser.py

# Colab's Pythons, of which tests/colab.txt has the packages: 5 GB each. uv fetches a Python that is not on this machine;
# where it cannot, it says so, and COLAB=3.12 takes only the other.
COLAB ?= 3.13 3.12

colab: $(COLAB:%=.colab/%/.installed) ## execute the notebooks with the versions that Colab has, from an empty folder
	set -eu; for version in $(COLAB); do \
	    .colab/$$version/bin/python -m pytest --durations=0 -k "colab or progress or t4" \
	        tests/test_colab.py tests/test_progress.py tests/test_recipes.py; \
	done

.colab/%/.installed: tests/colab.txt | $(STAMP)
	$(BIN)/uv venv --clear --python $* .colab/$*
	$(BIN)/uv pip install --python .colab/$* -r $<
	touch $@

lock: $(STAMP) ## renew requirements.lock from pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra dev --upgrade --no-annotate --generate-hashes \
	    --custom-compile-command "make lock" pyproject.toml -o requirements.lock

# The wheel is made from the unpacked source archive: what that lacks, and what lies about here, is in neither.
dist: $(STAMP) ## build the source archive and the wheel, into dist/
	rm -rf dist
	$(BIN)/uv build --no-build-isolation --python $(BIN)/python

clean: ## remove caches, build products and executed notebooks; never data, records or figures
	rm -rf build dist lib/*.egg-info .pytest_cache .ruff_cache
	find lib tests notebooks -depth \( -name __pycache__ -o -name .ipynb_checkpoints \) -exec rm -rf {} +
	rm -f figures/*/*/*.ipynb

# PYTHON=... chooses the interpreter; by default the newest one here that can build an environment.
# uv, itself of the lock, installs in seconds what pip installs in minutes; pip alone does where uv cannot be had. Every
# file must have a hash of the lock; only this library has none. Bytecode is compiled once, here: where Python may not
# write it, each process would compile PyTorch anew, which takes longer than all it imports.
$(STAMP): requirements.lock pyproject.toml $(NBCONVERT)
	@set -eu; \
	if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	    python=; old=; \
	    for name in $${PYTHON:-python3.13 python3.12 python3.11 python3}; do \
	        "$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	        old="$$name"; \
	        "$$name" -c 'import venv, ensurepip' 2>/dev/null || continue; \
	        python="$$name"; break; \
	    done; \
	    if [ -z "$$old" ]; then \
	        echo "prunelab needs Python 3.11 or newer; found: $$(python3 --version 2>&1 || true)." >&2; \
	        echo "Install one, or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; \
	    fi; \
	    if [ -z "$$python" ]; then \
	        version=$$("$$old" -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	        echo "$$old cannot build a virtual environment: its venv or ensurepip is missing." >&2; \
	        echo "On Debian and Ubuntu: sudo apt install python$$version-venv" >&2; exit 1; \
	    fi; \
	    echo "building $(VENV) with $$("$$python" --version)"; \
	    "$$python" -m venv $(VENV); \
	fi; \
	sed -n '/^uv==/,/[^\\]$$/p' requirements.lock | \
	    $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r /dev/stdin || true; \
	if $(BIN)/uv pip install --require-hashes --compile-bytecode --python $(BIN)/python -r requirements.lock && \
	    $(BIN)/uv pip install --no-build-isolation --no-deps --python $(BIN)/python -e .; then :; \
	else \
	    echo "uv could not install; trying pip, which takes longer"; \
	    $(BIN)/python -m pip install --disable-pip-version-check --require-hashes -r requirements.lock; \
	    $(BIN)/python -m pip install --disable-pip-version-check --no-build-isolation --no-deps -e .; \
	fi; \
	mkdir -p $(VENV)/etc/jupyter; \
	cp $(NBCONVERT) $(VENV)/etc/jupyter; \
	touch $@
