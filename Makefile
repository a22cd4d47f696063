# make            lists the targets
# make PYTHON=…   uses another interpreter (3.11 or newer) for the environment

PYTHON ?= python3
PREFIX ?= $(HOME)/.local
VENV := .venv
BIN := $(VENV)/bin
TREATMENT ?= examples/dexamethasone-40.toml
# Tests of what runs in more than one thread: the loop, its rings, recorder and sessions in real time.
THREADED := $(addprefix tests/,core/test_loop.py core/test_ring_and_clock.py core/test_host_thread.py test_recorder.py \
	test_session.py test_session_channels.py test_several_sessions.py test_host_pacing.py)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint bench day survey alarms accuracy prediction cuts replays coverage sanitize stops fuzz kill campaign \
	mutants hazards clean install hooks build pytest strict

# A build by other flags happens in a copy of the tree: here it would be taken for the ordinary one.
define copy_tree
	@rm -rf build/$(1) && mkdir -p build/$(1)
	@tar c --exclude=./.git --exclude=./$(VENV) --exclude=./build --exclude=./sessions --exclude='*.so' . | tar x -C build/$(1)
endef

help:
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.run build ## run a 40 mA·min treatment on a virtual patient; leaves record and report
	$(BIN)/ionto-rt run $(TREATMENT) --speed max --out sessions
	@session=$$(ls -1dt sessions/*/ | head -n 1); \
	$(BIN)/ionto-rt report "$$session" && echo && echo "record and report: $$session" && ls -1 "$$session"

test: lint pytest ## lint, build and run the whole test suite

lint: $(VENV)/.test strict ## ruff, cython-lint, mypy --strict, and a build that takes every warning for an error
	$(BIN)/ruff check .
	PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint $$(git ls-files -co --exclude-standard '*.pyx' '*.pxd')
	$(BIN)/mypy

bench: $(VENV)/.test build ## costs of tick, wire, loop and record beside their peers and floors
	$(BIN)/python -m pytest bench --benchmark-only

survey: $(VENV)/.test build ## the regulator on 200,000 random loops, and beside others: docs/regulator.md (slow)
	$(BIN)/python bench/survey.py --write docs/regulator.md
	$(BIN)/python bench/comparison.py --write docs/regulator.md

day: $(VENV)/.test build ## memory of a session of 24 h on the virtual clock (ten minutes)
	$(BIN)/python bench/day.py

alarms: $(VENV)/.test build ## contact-area test over 100 h of virtual skin: measured rate of false alarms
	$(BIN)/python bench/false_alarms.py

.PHONY: hazards safety contacts
contacts: $(VENV)/.test build ## what the guard notices of skin, pads and leads, and current at re-contact: docs/estimator.md
	$(BIN)/python bench/contact_safety.py

hazards: $(VENV)/.test build ## inject every hazard of docs/safety.md, on the virtual clock and in real time; limits beside worst times
	@mkdir -p build
	@$(BIN)/python -m pytest tests/hazards -q --junitxml build/hazards.xml; tests=$$?; \
	$(BIN)/python -m pytest tests/hazards -q --in-real-time -n 3 --junitxml build/hazards-real.xml || tests=1; \
	PYTHONPATH=src $(BIN)/python tests/hazard_table.py times build/hazards.xml build/hazards-real.xml && exit $$tests

safety: $(VENV)/.run ## write the table of docs/safety.md from src/ionto_rt/hazards.toml
	PYTHONPATH=src $(BIN)/python tests/hazard_table.py page docs/safety.md

accuracy: $(VENV)/.bench build ## impedance estimators beside their Cramer-Rao bounds and an offline fit
	$(BIN)/python bench/estimator.py
	$(BIN)/python bench/quantisation.py
	$(BIN)/python bench/prbs.py

prediction: $(VENV)/.test build ## the certificate beside 100,000 simulated loops of the compiled regulator (minutes)
	$(BIN)/python tests/stability_survey.py 100000

cuts: $(VENV)/.test build ## the record cut at every byte of two batches and at 10,000 places, flipped at 20,000 (slow)
	$(BIN)/python tests/record_survey.py flips 10000
	$(BIN)/python tests/record_survey.py flipped 10000
	$(BIN)/python tests/record_survey.py cuts 10000

replays: $(VENV)/.test build ## examples and 100 faulted sessions replayed by cores at -O0 and -O3, and without the library's FMA
	$(call copy_tree,replays-O0)
	$(call copy_tree,replays-O3)
	cd build/replays-O0 && IONTO_RT_OPTIMIZE=-O0 $(CURDIR)/$(BIN)/python setup.py -q build_ext --inplace
	cd build/replays-O3 && IONTO_RT_OPTIMIZE=-O3 $(CURDIR)/$(BIN)/python setup.py -q build_ext --inplace
	$(BIN)/python tests/replay_survey.py replays 100 1 build/replays-O0/src build/replays-O3/src

coverage: $(VENV)/.test ## line coverage of Python and Cython sources, in build/coverage/htmlcov (slow)
	$(call copy_tree,coverage)
	cd build/coverage && IONTO_RT_COVERAGE=1 IONTO_RT_OPTIMIZE=-O0 $(CURDIR)/$(BIN)/python setup.py -q build_ext --inplace
	cd build/coverage && PYTHONPATH=$(CURDIR)/build/coverage/src $(CURDIR)/$(BIN)/coverage run -m pytest tests \
		-m 'not slow' --timeout 0
	cd build/coverage && $(CURDIR)/$(BIN)/coverage html --quiet && $(CURDIR)/$(BIN)/coverage report

sanitize: $(VENV)/.test ## the suite under the address and undefined-behaviour sanitizers, what has threads under the thread sanitizer (slow)
	$(call copy_tree,sanitize)
	cd build/sanitize && IONTO_RT_SANITIZE=address,undefined $(CURDIR)/$(BIN)/python setup.py -q build_ext --inplace
	+cd build/sanitize && PYTHONPATH=$(CURDIR)/build/sanitize/src PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0 \
		UBSAN_OPTIONS=print_stacktrace=1 \
		LD_PRELOAD="$$(realpath $$(gcc -print-file-name=libasan.so)) $$(realpath $$(gcc -print-file-name=libubsan.so))" \
		$(MAKE) --output-sync=target -j 2 in-real-time beside BIN=$(CURDIR)/$(BIN) AND='and not slow'
	$(call copy_tree,threads)
	cd build/threads && IONTO_RT_SANITIZE=thread IONTO_RT_OPTIMIZE=-O1 $(CURDIR)/$(BIN)/python setup.py -q build_ext --inplace
	cd build/threads && PYTHONPATH=$(CURDIR)/build/threads/src \
		TSAN_OPTIONS=exitcode=66:history_size=7:suppressions=$(CURDIR)/tests/tsan.supp:log_path=$(CURDIR)/build/threads/race \
		LD_PRELOAD="$$(realpath $$(gcc -print-file-name=libtsan.so))" $(CURDIR)/$(BIN)/python -m pytest $(THREADED)
	@! cat build/threads/race.* 2>/dev/null

fuzz: $(VENV)/.fuzz build ## libFuzzer on the wire and a device, atheris on the Python readers; FUZZ='--seconds 60 TARGET…'
	$(call copy_tree,fuzz)
	cd build/fuzz && $(CURDIR)/$(BIN)/python fuzz/build.py
	$(BIN)/python fuzz/run.py $(FUZZ)

kill: $(VENV)/.test build ## 1,000 hosts killed and 200 stopped at random moments of short treatments (half an hour); KILL=… options
	cd tests && $(CURDIR)/$(BIN)/python kill_survey.py $(KILL)

stops: $(VENV)/.test build ## each of the four stops alone, in a build in which the others can be taken away
	$(BIN)/python -m pytest tests/test_stops.py

campaign: $(VENV)/.test build ## a billion ticks of sessions under faults, every invariant in every tick (half an hour)
	$(BIN)/ionto-rt campaign --ticks 1000000000 --whole 1000 --out build/campaign.json

mutants: $(VENV)/.test build ## plant defects one at a time; the campaign's quick slice must find each (half an hour)
	$(BIN)/python tests/mutants.py

clean: ## remove builds, caches and the environment; sessions stay
	rm -rf build dist src/*.egg-info $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find src ext tests bench examples -name '*.so' -delete -o -name '__pycache__' -prune -exec rm -rf {} +

install: ## put the ionto-rt command into PREFIX/bin (default ~/.local)
	@$(PYTHON) .ci/prerequisites.py
	$(PYTHON) -m venv $(PREFIX)/lib/ionto-rt
	$(PREFIX)/lib/ionto-rt/bin/pip install --quiet --upgrade '.[report]'
	mkdir -p $(PREFIX)/bin
	ln -sf ../lib/ionto-rt/bin/ionto-rt $(PREFIX)/bin/ionto-rt

hooks: $(VENV)/.test ## run the quick checks before every commit
	$(BIN)/pip install --quiet pre-commit
	$(BIN)/pre-commit install

pytest: $(VENV)/.test build
	+@$(MAKE) --no-print-directory --output-sync=target -j 2 in-real-time beside

# Tests in real time wait for most of theirs, and judge delays; what computes stands back for them.
.PHONY: in-real-time beside
in-real-time:
	$(BIN)/python -m pytest tests -m 'real_time $(AND)'

beside:
	nice -n 10 $(BIN)/python -m pytest tests -m 'not real_time $(AND)'

build: $(VENV)/.tools
	@$(BIN)/python setup.py -q build_ext --inplace

# A tree of its own, so that a build by other flags is never taken for a clean one. Cython prints its hints only when it
# translates, hence a tree with a hint is thrown away.
strict: $(VENV)/.tools
	@mkdir -p build
	@IONTO_RT_STRICT=1 $(BIN)/python setup.py -q build_ext --build-lib build/strict/lib --build-temp build/strict/tmp \
		>build/strict.log 2>&1 || { cat build/strict.log; exit 1; }
	@if grep -nE '(performance hint|warning):' build/strict.log; then \
		cat build/strict.log; rm -rf build/strict; echo 'the build must be free of hints and warnings' >&2; exit 1; fi

$(VENV)/.tools: .ci/prerequisites.py
	@command -v $(PYTHON) >/dev/null || { echo 'missing: $(PYTHON) (install with: sudo apt-get install python3 python3-venv python3-dev)'; exit 1; }
	@$(PYTHON) .ci/prerequisites.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet 'setuptools>=77' 'Cython>=3.1'
	@touch $@

# Requirements and the command; the extensions are built in place by "build", which knows what has changed.
$(VENV)/.run: pyproject.toml $(VENV)/.tools
	IONTO_RT_EXTENSIONS=0 $(BIN)/pip install --quiet --no-build-isolation --editable '.[report]'
	@touch $@

$(VENV)/.bench: pyproject.toml $(VENV)/.test
	IONTO_RT_EXTENSIONS=0 $(BIN)/pip install --quiet --no-build-isolation --editable '.[bench]'
	@touch $@

$(VENV)/.fuzz: pyproject.toml $(VENV)/.test
	@command -v clang >/dev/null || { echo 'missing: clang (install with: sudo apt-get install clang libclang-rt-dev)'; exit 1; }
	IONTO_RT_EXTENSIONS=0 $(BIN)/pip install --quiet --no-build-isolation --editable '.[fuzz]'
	@touch $@

$(VENV)/.test: pyproject.toml $(VENV)/.tools
	IONTO_RT_EXTENSIONS=0 $(BIN)/pip install --quiet --no-build-isolation --editable '.[report,test]'
	@touch $@ $(VENV)/.run
