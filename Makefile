# The two commands of the README are `make run` and `make test`; both set up .venv themselves.
PYTHON ?= python3
BIN := .venv/bin
RUN_OUT ?= out
# what lets `make run` end within minutes on two cores; empty for the whole of the default preset
RUN_SETTINGS ?= GESTURE_NB_MEMBERS=lgbm,torch,keras GESTURE_NB_EPOCHS=12

.PHONY: setup run test lint drift docs notebooks lab style golden bench soak test-kaggle test-latest kaggle-rehearsal clean

setup:
	@$(PYTHON) tools/setup.py

run: setup
	@mkdir -p $(RUN_OUT)
	@$(RUN_SETTINGS) PROGRESS=lines OUTPUT_PATH=$(RUN_OUT) $(BIN)/papermill nbs/90_main.ipynb $(RUN_OUT)/90_main.ipynb \
		--cwd . --kernel python3 --no-progress-bar --stdout-file - --stderr-file /dev/stderr

test: lint drift docs
	@$(BIN)/python tools/browser.py
	@$(BIN)/python tools/notebooks.py test
	@$(BIN)/python -m pytest tests/test_golden.py tests -ra --durations=15 -n 2 --dist loadfile --no-loadscope-reorder

lint: setup
	@$(BIN)/ruff check .

# what is generated must be what is committed
drift: setup
	@$(BIN)/python tools/notebooks.py drift

# the documentation site in build/site: built offline, links checked
docs: setup
	@$(BIN)/python tools/docs.py

# export, clean and rebuild the README after editing notebooks
notebooks: setup
	@$(BIN)/python tools/notebooks.py export

lab: setup
	@$(BIN)/jupyter lab nbs

# how the code and the notebooks read, in numbers; `make style REVISION=HEAD~10` compares
style: setup
	@$(BIN)/python tools/style.py $(REVISION)

# all members on two small data sets: the same bytes as on record (part of `make test` as well)
golden: setup
	@$(BIN)/python tools/golden.py check

bench: setup
	@for f in benchmarks/[a-z]*.py; do echo "== $$f"; $(BIN)/python $$f || exit 1; done

soak: setup
	@READER_CASES=2000 $(BIN)/python -m pytest tests/test_readers.py -q -ra -k fuzz
	@FLIPS=100 $(BIN)/python -m pytest tests -q -ra -m soak -o addopts=

# the same tests with the versions of Kaggle's image (Python 3.12 where it is found), in .venv-kaggle
test-kaggle:
	@$(PYTHON) tools/versions.py kaggle

# the same tests with the newest releases, in .venv-latest
test-latest:
	@$(PYTHON) tools/versions.py latest

# the folder for Kaggle, run as Kaggle would: no network, read-only input, the rerun and the other run
kaggle-rehearsal: setup
	@$(BIN)/python tools/rehearsal.py $(REHEARSAL)

clean:
	rm -rf out .pytest_cache .hypothesis .ruff_cache build dist
