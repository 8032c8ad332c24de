# Two commands: `make quickstart` (train, evaluate and chat on the embedded data) and `make test`.
PYTHON ?= python3
VENV ?= .venv
ARMS ?= grid_manager
BIN := $(abspath $(VENV))/bin
INSTALLED := $(VENV)/installed

.PHONY: install test lint quickstart clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[train,eval-requirements,demo,video,quantization,dev]'
	$(BIN)/pip install --quiet -c constraints.txt --no-deps lmms-eval
	touch $@

test: install
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

quickstart: install
	PATH="$(BIN):$$PATH" bash scripts/quickstart.sh "$(ARMS)"

clean:
	rm -rf $(VENV) playground/quickstart
