# The front door; CMakePresets.json holds the real build. Every goal runs tools/bootstrap first.
#   make, make test, make demo METHOD=etherplus LR=1e-3, make oracle, make bench (after make oracle), make asan, make tsan,
#   make format, make format-check
PRESET ?= release
JOBS ?= $(shell nproc)
SOURCES = $(wildcard src apps tests bench fuzz)

.PHONY: all bootstrap build test demo oracle bench asan tsan format format-check clean
all: build

bootstrap:
	@tools/bootstrap

build: bootstrap
	@test -e build/$(PRESET)/build.ninja || cmake --preset $(PRESET)
	cmake --build --preset $(PRESET) -j $(JOBS)

# Test programs run side by side: threads that wait must not spin.
test: build
	OMP_WAIT_POLICY=passive ctest --preset $(PRESET) -j $(JOBS)

# Variables given on the command line (METHOD=..., LR=...) reach tools/demo through the environment.
demo: build
	tools/demo

oracle: build
	tools/oracle

# Speed and memory beside the peers', on a machine that does nothing else.
bench: build
	@test -x .venv-oracle/bin/python || { echo 'make bench compares with PEFT: run make oracle first' >&2; exit 1; }
	.venv-oracle/bin/python bench/check.py

asan tsan:
	$(MAKE) test PRESET=$@

format: bootstrap
	find $(SOURCES) -name '*.h' -o -name '*.cpp' | xargs clang-format -i

format-check: bootstrap
	find $(SOURCES) -name '*.h' -o -name '*.cpp' | xargs clang-format --dry-run -Werror

clean:
	rm -rf build
