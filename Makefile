# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
GPU_VENV ?= $(VENV)-gpu
PIP := $(BIN)/python -m pip --disable-pip-version-check
ROOMS := bundle runtime engines kernels exporter calibration parity tools commands
FILES := __init__ cli pipeline options errors progress

.PHONY: demo test test-avx2 gpu docs lint clean

$(VENV)/demo.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt --editable '.[export,onnxruntime]'
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
	$(BIN)/pytest

# The same as on a CPU without AVX-512 and VNNI: tests/hardware/mask_cpu. Linux on x86-64, with gcc and objdump.
test-avx2: $(VENV)/dev.stamp
	$(BIN)/python tests/hardware/mask_cpu/run.py avx2 $(BIN)/pytest

# Everything that only a GPU can answer: targets, engines, parity, speed; without one it says so. What of the two TensorRT
# packages does not install is not run.
$(GPU_VENV)/gpu.stamp: pyproject.toml
	$(PYTHON) -m venv $(GPU_VENV)
	$(GPU_VENV)/bin/python -m pip install --quiet --editable '.[export,onnxruntime-gpu]'
	-$(GPU_VENV)/bin/python -m pip install --quiet --editable '.[rtx]'
	-$(GPU_VENV)/bin/python -m pip install --quiet --editable '.[tensorrt]'
	touch $@

ifeq ($(shell command -v nvidia-smi),)
gpu: $(VENV)/demo.stamp
	$(BIN)/python -m benchmarks.gpu --out build/gpu
else
gpu: $(GPU_VENV)/gpu.stamp
	$(GPU_VENV)/bin/python -m benchmarks.gpu --out build/gpu
endif

# mypy does not follow an editable install's import hook: it reads the package through links.
build/types: Makefile
	rm -rf $@
	mkdir -p $@/t5edge
	for room in $(ROOMS); do ln -s ../../../$$room $@/t5edge/$$room; done
	for file in $(FILES); do ln -s ../../../$$file.py $@/t5edge/$$file.py; done

# The site, from docs/ and the program's own declarations, into build/site; a warning fails it.
docs: $(VENV)/dev.stamp build/types
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

lint: $(VENV)/dev.stamp build/types docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) $(GPU_VENV) build
