# Needs Python >= 3.11 with pip, and make; everything else is installed into .venv.
#   make demo    a portrait that talks: demo.mp4
#   make test    the tests (TESTS='-m slow' or TESTS='-m gpu' for the others)
#   make check   ruff, formatting, types, tests
#   make bench   how long each phase of `emo generate` takes
#   make train-mini DATA=... TEACHER=...   the embedded weights anew (docs/training.md); resumable

PYTHON ?= python3
TESTS ?= -m "not gpu and not slow"
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test check bench train-mini
.DELETE_ON_ERROR:

demo: $(READY)
	$(BIN)/emo generate examples/nobody.jpg examples/speech.wav -o demo.mp4 --overwrite

test: $(READY)
	$(BIN)/python -m pytest $(TESTS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest $(TESTS)

bench: $(READY)
	$(BIN)/python benchmarks/generate.py

# DATA: the folder of scripts/train_mini.py; TEACHER: one of Whisper tiny; OPTIONS: --window 16 ...
train-mini: $(READY)
	$(BIN)/python scripts/train_mini.py --data "$(DATA)" --teacher "$(TEACHER)" --out runs $(OPTIONS)

# .ready is written last: without it the environment is half made, and is made again from nothing.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'emo-cli needs Python 3.11 or newer; $(PYTHON) is not.' >&2; \
	  echo 'Name another one: make PYTHON=python3.12' >&2; exit 1; }
	@if [ ! -f $@ ]; then rm -rf .venv; \
	  $(PYTHON) -m venv .venv >/dev/null 2>&1 || { rm -rf .venv; \
	    $(PYTHON) -m venv --without-pip .venv && \
	    $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }; fi
	@rm -f $@
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
