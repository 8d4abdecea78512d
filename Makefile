# make install | test | test-onnx | check | demo | docs. Needs python3 (3.11 or newer) with venv, and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/demo

.PHONY: install test test-onnx check demo docs clean

install: $(VENV)/installed

# Reinstalled only when what is installed changes.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "focaljax needs Python 3.11 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	@touch $@

test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# In an environment of its own, because jax2onnx wants an older orbax-checkpoint than constraints.txt has.
$(VENV)-onnx/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)-onnx
	$(VENV)-onnx/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[onnx,test]'
	@touch $@

test-onnx: $(VENV)-onnx/installed
	$(VENV)-onnx/bin/python -m pytest tests/cli/test_export.py -k onnx

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

demo: install
	$(BIN)/focaljax train --config configs/shapes.py --workdir $(DEMO)
	$(BIN)/focaljax evaluate --workdir $(DEMO) --split test
	$(BIN)/focaljax samples --config configs/shapes.py --split test --count 8 --out $(DEMO)/samples
	$(BIN)/focaljax predict --workdir $(DEMO) --out $(DEMO)/predictions $(DEMO)/samples/images
	@echo "pictures: $(CURDIR)/$(DEMO)/predictions"
	@echo "ground truth beside detections: $(CURDIR)/$(DEMO)/sheets_test; curves: $(CURDIR)/$(DEMO)/curves.png"

# site/index.html is the first page; a link that leads nowhere, in the documents or the docstrings, is an error.
docs: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

clean:
	rm -rf site $(VENV) $(VENV)-onnx $(DEMO) .cache
