# `make demo` and `make test` are all that a fresh machine needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Neither the demonstration nor the tests may look for a hub.
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test test-floors test-matrix test-all docs quality audit style clean

# What the commands need, without the developers' tools.
$(VENV)/.installed-all: setup.py
	@echo "Installs PyTorch and the rest into $(VENV): about 3.3 GB to download, 6.7 GB on disk (Linux)."
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[all]"
	$(BIN)/python -c "import torchvision, timm, transformers, c2fmae_hf"
	touch $@

$(VENV)/.installed: $(VENV)/.installed-all pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

## Pre-train a small model on embedded photographs, offline; load its encoder with transformers and with timm.
demo: $(VENV)/.installed-all
	rm -rf runs/demo
	$(BIN)/c2fmae demo

## The tests, without those marked slow: a process for each core.
test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist loadfile --no-loadscope-reorder -m "not slow" tests

## The same tests on other Pythons, with the newest and with the oldest versions that setup.py allows.
test-matrix:
	$(PYTHON) .ci/matrix.py

## The same tests with the oldest versions.
test-floors:
	$(PYTHON) .ci/matrix.py --pythons $$($(PYTHON) -c "import sys; print(sys.executable)") --versions floors

# Apart from the rest, since Gradio takes an older Pillow than what `make test` has.
$(VENV)/.installed-app: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[dev,app]" "playwright>=1.55"
	touch $@

## All tests, with those that transformers and timm run on their own models (docs/conformity.md), the documents' site, and
## the page of `c2fmae app` in the system's Chromium, where there is one.
test-all: $(VENV)/.installed-app
	$(BIN)/python -m pytest tests

## The documents as a site, build/docs/index.html: warnings are errors, links lead somewhere, nothing is loaded from afar.
docs: $(VENV)/.installed
	rm -rf build/docs
	$(BIN)/python -m sphinx --quiet --fail-on-warning --fresh-env -c docs/site -d build/doctrees . build/docs
	$(BIN)/python docs/site/check_site.py build/docs

## Lint, formatting, types.
quality: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	-$(MAKE) audit

## Known vulnerabilities of what is installed; without a network it finds nothing to say. `quality` shows them, too.
audit: $(VENV)/.installed
	@$(BIN)/pip-audit --skip-editable --progress-spinner off > .audit 2>&1; \
	grep "could not be audited" .audit | wc -l | xargs echo "packages that could not be audited:"; \
	grep -v "could not be audited" .audit | head -40; ! grep -q "known vulnerabilit.*in" .audit; found=$$?; rm -f .audit; exit $$found

## Mend what `quality` can mend.
style: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf runs build dist src/*.egg-info
