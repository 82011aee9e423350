# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test lint clean

$(VENV)/demo.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# Export the trained demo model in fp16, prove it against PyTorch, and ask it something. Offline, no GPU.
demo: $(VENV)/demo.stamp
	$(BIN)/t5edge export --variant t5-demo --precision fp16 --target onnxruntime --out build/t5-demo-fp16 --force
	$(BIN)/t5edge generate build/t5-demo-fp16 "spell 1984" "spell de 1984" "read one thousand, nine hundred and eighty-four"

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build
