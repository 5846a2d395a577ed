# make demo    export a real model and compare it with the original, on whatever this machine has
# make test    build what is needed and run every test that needs no GPU
# make lint    style of the Python code
# make gpu-bundle    gpu-bundle/: what a GPU machine without network needs beside this checkout
PYTHON ?= python3
VENV ?= .venv
# All the build commands share one cache of fetched headers.
export FDPP_CACHE_DIR ?= $(CURDIR)/.cache

BIN := $(VENV)/bin
SOURCES := pyproject.toml CMakeLists.txt $(shell find cmake plugins fdpp_ort export -type f -not -name '*.pyc')

.PHONY: demo test lint gpu-bundle clean

demo: $(VENV)/installed
	$(BIN)/python examples/demo/demo.py

# The script, not python -m pytest: that would put this folder before the installed package.
test: $(VENV)/installed
	$(BIN)/pytest -q tests

lint: $(VENV)/installed
	$(BIN)/ruff check .

# Build requirements live in the environment itself (no isolation), so that a rebuild compiles only what changed.
$(VENV)/requirements: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "scikit-build-core>=0.11" "pybind11>=2.13" "cmake>=3.24" ninja
	touch $@

$(VENV)/installed: $(VENV)/requirements $(SOURCES)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install --no-build-isolation --progress-bar on ".[dev]"
	touch $@

gpu-bundle: $(VENV)/requirements
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S . -B build/gpu -G Ninja -DFDPP_CUDA=ON -DFDPP_CUDA_ARCHITECTURES=90a
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build build/gpu
	mkdir -p gpu-bundle
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S tests/plugins -B build/gpu-host -G Ninja
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build build/gpu-host
	cp build/gpu/plugins/ort/libfdpp_ort.so build/gpu/plugins/tensorrt/libfdpp_trt.so gpu-bundle/
	cp build/gpu-host/libfdpp_trt_host.so gpu-bundle/
	git rev-parse HEAD > gpu-bundle/COMMIT

clean:
	rm -rf build $(VENV) gpu-bundle demo .cache
