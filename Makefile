# Every target makes .venv by itself when it is missing or older than what it is made from.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
LOG    := $(VENV)/install.log
# pytest's processes: one more than two cores, because many tests wait for daemons.
PYTEST_PROCESSES ?= 3

PIP     = $(BIN)/python -m pip --disable-pip-version-check
# What pip and setuptools say goes to the log, and to the screen where they fail.
QUIETLY = quietly() { "$$@" >> $(LOG) 2>&1 || { status=$$?; cat $(LOG) >&2; exit $$status; }; }; quietly

.PHONY: demo docs test test-all test-linear test-busy test-algos test-collect test-asan test-kill test-peers test-reliability test-systemd test-tutorials lint fuzz wheel clean help
.PHONY: bench bench-train bench-store bench-import bench-latency bench-collect bench-online bench-record bench-wire bench-load scores procgen
.PHONY: install-service uninstall-service

help:            ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/ -/'

demo: $(STAMP)   ## the whole path: collect CartPole data, train DiscreteCQL in an embedded daemon, fetch, evaluate with onnxruntime
	@$(BIN)/offrl demo

test: $(STAMP)   ## the test suite, a quarter of an hour on two cores
	$(BIN)/python -m pytest -n $(PYTEST_PROCESSES) --dist loadfile

test-all: $(STAMP)  ## the suite with its slow tests
	$(BIN)/python -m pytest -m ''

# What trains or runs networks: the tests whose last bits the processor and its libraries decide.
PRODUCTS := tests/engine tests/nets tests/algos tests/export tests/worker
test-linear: $(STAMP)  ## these tests under every linear product that this processor offers, and once with torch's kernels of AVX2
	@for linear in $$($(BIN)/python -c 'from offrld.nets import onednn; print(*onednn.offered())'); do echo "OFFRL_LINEAR=$$linear"; \
		OFFRL_LINEAR=$$linear $(BIN)/python -m pytest -n $(PYTEST_PROCESSES) --dist loadfile $(PRODUCTS) || exit $$?; done
	@echo "ATEN_CPU_CAPABILITY=avx2"; ATEN_CPU_CAPABILITY=avx2 $(BIN)/python -m pytest -n $(PYTEST_PROCESSES) --dist loadfile $(PRODUCTS)

test-busy: $(STAMP)    ## the test suite beside two busy loops
	$(BIN)/python tests/beside_loops.py 2 -n $(PYTEST_PROCESSES) --dist loadfile

lint: $(STAMP)   ## ruff (rules and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/phrases.py
	$(BIN)/python -m mypy

docs: $(STAMP)   ## docs/algorithms.md from the registry; options of jobs in docs/cli.md and in the client's keywords
	$(BIN)/python -m offrld.docs
	$(BIN)/python -m offrl.cli.reference

bench: $(STAMP)  ## training speed of a real job against d3rlpy, side by side
	$(BIN)/python -m benchmarks.train

bench-train: $(STAMP)    ## training speed of every algorithm against d3rlpy and plain eager code
	$(BIN)/python -m benchmarks.train_speed

bench-store: $(STAMP)    ## the store beside plain C and other replay buffers, one table; makes .venv-store-peers
	$(BIN)/python -m benchmarks.store

bench-collect: $(STAMP)  ## steps per second into a store beside the bare loop and other libraries; makes .venv-store-peers
	$(BIN)/python -m benchmarks.collect

bench-import: $(STAMP)   ## importing a D4RL file beside h5py alone, and the memory of an Atari epoch of a million frames (8 GB of disk)
	$(BIN)/python -m benchmarks.import_speed

bench-latency: $(STAMP)  ## submit, first update, idle daemon
	$(BIN)/python -m benchmarks.latency

bench-record: $(STAMP)   ## processor time of recording a loop of 1 kHz with 100 floats, sent to a daemon meanwhile
	$(BIN)/python -m benchmarks.record

bench-load: $(STAMP)     ## 1,000 queued jobs and 200 clients: answer times; memory over ten minutes of churn
	$(BIN)/python -m benchmarks.load

scores: $(STAMP)         ## scores beside d3rlpy's on ../shared/data; over an hour
	$(BIN)/python -m benchmarks.scores

bench-online: $(STAMP)     ## SAC on Pendulum and DQN on CartPole, trained online to known returns; ten minutes a seed
	$(BIN)/python -m benchmarks.online

test-tutorials: $(STAMP)  ## every page of docs/tutorials and its script; Procgen's where it is installed
	$(BIN)/python -m pytest -m '' tests/docs/test_tutorials.py

test-collect: $(STAMP)   ## collecting through a daemon that is killed, with a policy that still trains, in environments that break, on Atari
	$(BIN)/python -m pytest -m slow tests/client/test_client_collect_daemon.py

test-algos: $(STAMP)     ## every algorithm once through a real daemon, its policy through onnxruntime; ten minutes
	$(BIN)/python -m pytest -m slow tests/worker/test_every_algorithm.py

fuzz: $(STAMP)           ## the wire, ten million messages: coverage-guided (atheris, in .venv-fuzz), and mutated sessions against a daemon; an hour
	@test -x .venv-fuzz/bin/python || $(PYTHON) -m venv .venv-fuzz
	@.venv-fuzz/bin/python -c 'import atheris' 2>/dev/null || .venv-fuzz/bin/pip install -q -c constraints.txt atheris==3.0.0 numpy msgpack pydantic
	@mkdir -p build/fuzz
	PYTHONPATH=tests/fuzz:client:datastore:. .venv-fuzz/bin/python tests/fuzz/coverage_wire.py -runs=9000000 -max_len=4096 -timeout=10 \
		-rss_limit_mb=2048 -print_final_stats=1 -artifact_prefix=build/fuzz/crash- build/fuzz
	PYTHONPATH=tests/daemon $(BIN)/python tests/fuzz/socket_wire.py --messages 1200000

bench-wire: $(STAMP)     ## a ping beside a bare echo; a 1 GB upload while others ping
	$(BIN)/python -m benchmarks.wire

test-kill: $(STAMP)      ## the long form of the kill tests of the store
	$(BIN)/python -m pytest -m slow tests/store

test-reliability: $(STAMP)  ## 500 kills of the daemon and 200 of workers under load, faults of disk, clock and files; over an hour
	$(BIN)/python -m pytest -m '' -s tests/reliability

test-asan: $(STAMP)      ## the store's tests on kernels built with AddressSanitizer, in a folder of their own (gcc)
	$(BIN)/python tests/sanitizer/run_sanitized.py

procgen: $(STAMP)        ## add Procgen's games to .venv; without its dependencies, which would pin old versions of ours
	@: > $(LOG)
	@$(QUIETLY) $(PIP) install -c constraints.txt --no-deps procgen-mirror gym3
	@$(QUIETLY) $(PIP) install -c constraints.txt cffi imageio

wheel: $(STAMP)  ## dist/offrl-*.whl
	@: > $(LOG)
	@$(QUIETLY) $(PIP) wheel --no-deps -w dist .
	@ls dist

# Neither needs .venv: the service runs from PREFIX, a virtual environment with `offrl[daemon]` in it (docs/operations.md).
PREFIX      ?= /opt/offrld
UNITDIR     ?= /etc/systemd/system
SYSUSERSDIR ?= /usr/lib/sysusers.d

install-service:         ## the systemd service that runs PREFIX (/opt/offrld); GPU=1: with a card; DESTDIR: into a package
	@test -n "$(DESTDIR)" || test -x $(PREFIX)/bin/offrld || { echo "no $(PREFIX)/bin/offrld: install offrl[daemon] there, or give PREFIX=" >&2; exit 1; }
	install -D -m 644 systemd/offrld.sysusers $(DESTDIR)$(SYSUSERSDIR)/offrld.conf
	install -d -m 755 $(DESTDIR)$(UNITDIR)
	sed 's|/opt/offrld|$(PREFIX)|g' systemd/offrld.service > $(DESTDIR)$(UNITDIR)/offrld.service
	chmod 644 $(DESTDIR)$(UNITDIR)/offrld.service
	$(if $(GPU),install -D -m 644 systemd/offrld-gpu.conf $(DESTDIR)$(UNITDIR)/offrld.service.d/gpu.conf)
	$(if $(DESTDIR),,systemd-sysusers $(SYSUSERSDIR)/offrld.conf)
	$(if $(DESTDIR),,systemctl daemon-reload)
	@echo 'start it: systemctl enable --now offrld'

uninstall-service:       ## stop and remove the service; its data and its user stay
	$(if $(DESTDIR),,-systemctl disable --now offrld)
	rm -f $(DESTDIR)$(UNITDIR)/offrld.service $(DESTDIR)$(UNITDIR)/offrld.service.d/gpu.conf $(DESTDIR)$(SYSUSERSDIR)/offrld.conf
	-@rmdir $(DESTDIR)$(UNITDIR)/offrld.service.d 2>/dev/null || true
	$(if $(DESTDIR),,systemctl daemon-reload)
	@echo 'the data stay in /var/lib/offrld, and so does the user offrld: rm -r the one, userdel the other, if they shall go'

# Both environments are made once; PEER=.../bin/python and PEER_B=... name others instead.
test-peers: $(STAMP)     ## round trips with Minari, TorchRL, d3rlpy, LeRobot and robomimic themselves; makes .venv-peers-a and .venv-peers-b (13 GB)
	@test -n "$(PEER)" || test -f .venv-peers-a/.installed || { $(PYTHON) -m venv .venv-peers-a \
		&& .venv-peers-a/bin/pip install -q torch==2.13.0 && .venv-peers-a/bin/pip install -q -r tests/peers/requirements-a.txt \
		&& touch .venv-peers-a/.installed; }
	@test -n "$(PEER_B)" || test -f .venv-peers-b/.installed || { $(PYTHON) -m venv .venv-peers-b \
		&& .venv-peers-b/bin/pip install -q torch==2.14.1 torchvision==0.29.1 \
		&& .venv-peers-b/bin/pip install -q -r tests/peers/requirements-b.txt && touch .venv-peers-b/.installed; }
	PEER="$(PEER)" PEER_B="$(PEER_B)" $(BIN)/python -m pytest -m slow -rs tests/peers

test-systemd: $(STAMP)   ## the service under a systemd of its own, as root: install, start, crash, hang, stop, two robots, uninstall
	$(BIN)/python -m pytest -m slow -rs tests/systemd

# torch first and by its pin: an unpinned torch would bring several gigabytes of CUDA packages.
$(STAMP): pyproject.toml constraints.txt $(wildcard datastore/offrl_store/*.pyx datastore/offrl_store/*.pxd)
	@echo "installing into $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@: > $(LOG)
	@$(QUIETLY) $(PIP) install -c constraints.txt --upgrade pip
	@$(QUIETLY) $(PIP) install -c constraints.txt torch==2.13.0
	@$(QUIETLY) $(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

clean:           ## remove what was built, not .venv
	rm -rf build dist *.egg-info datastore/offrl_store/*.so datastore/offrl_store/*.c
