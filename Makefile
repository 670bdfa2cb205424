# Every target makes .venv by itself when it is missing or older than what it is made from.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo docs test test-all test-algos test-asan test-kill lint bench bench-train bench-store bench-latency bench-record scores wheel clean help

help:            ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/ -/'

demo: $(STAMP)   ## the whole path: collect CartPole data, train DiscreteCQL in an embedded daemon, fetch, evaluate with onnxruntime
	@$(BIN)/offrl demo

test: $(STAMP)   ## the test suite, under ten minutes on two cores
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-all: $(STAMP)  ## the suite with its slow tests
	$(BIN)/python -m pytest -m ''

lint: $(STAMP)   ## ruff over everything
	$(BIN)/ruff check .

docs: $(STAMP)   ## docs/algorithms.md from the registry
	$(BIN)/python -m offrld.docs

bench: $(STAMP)  ## training speed of a real job against d3rlpy, side by side
	$(BIN)/python -m benchmarks.train

bench-train: $(STAMP)    ## training speed of every algorithm against d3rlpy and plain eager code
	$(BIN)/python -m benchmarks.train_speed

bench-store: $(STAMP)    ## the store beside plain C and other replay buffers, one table; makes .venv-store-peers
	$(BIN)/python -m benchmarks.store

bench-latency: $(STAMP)  ## submit, first update, idle daemon
	$(BIN)/python -m benchmarks.latency

bench-record: $(STAMP)   ## processor time of recording a loop of 1 kHz with 100 floats, sent to a daemon meanwhile
	$(BIN)/python -m benchmarks.record

scores: $(STAMP)         ## scores beside d3rlpy's on ../shared/data; over an hour
	$(BIN)/python -m benchmarks.scores

test-algos: $(STAMP)     ## every algorithm once through a real daemon, its policy through onnxruntime; ten minutes
	$(BIN)/python -m pytest -m slow tests/worker/test_every_algorithm.py

test-kill: $(STAMP)      ## the long form of the kill tests of the store
	$(BIN)/python -m pytest -m slow tests/store

test-asan: $(STAMP)      ## the store's tests on kernels built with AddressSanitizer, in a folder of their own (gcc)
	$(BIN)/python tests/sanitizer/run_sanitized.py

wheel: $(STAMP)  ## dist/offrl-*.whl
	$(BIN)/python -m pip wheel --no-deps -q -w dist . && ls dist

# torch first and by its pin: an unpinned torch would bring several gigabytes of CUDA packages.
$(STAMP): pyproject.toml constraints.txt $(wildcard datastore/offrl_store/*.pyx datastore/offrl_store/*.pxd)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip -c constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

clean:           ## remove what was built, not .venv
	rm -rf build dist *.egg-info datastore/offrl_store/*.so datastore/offrl_store/*.c
