# make demo | test | lint | bench | bench-gpu | lease | mutants
#
# bench walks through the benchmarks at toy sizes on any machine; bench-gpu measures, on a CUDA device;
# lease checks and measures everything in nine minutes of one.
# Each makes .venv on its first run. PYTHON=/path/to/python VENV= uses an existing environment as it is.

PYTHON ?= python3
VENV ?= .venv
RUN = $(if $(VENV),$(VENV)/bin/python,$(PYTHON))
READY = $(if $(VENV),$(VENV)/.ready,)

.PHONY: demo test lint bench bench-gpu lease mutants clean

demo: $(READY)
	$(RUN) -m llava_min.generate

test: $(READY)
	$(RUN) -m pytest

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy -p llava_min

bench: $(READY)
	$(RUN) -m bench kernels --dry-run
	$(RUN) -m bench generate --dry-run
	$(RUN) -m bench devices --dry-run
	$(RUN) -m bench ask --dry-run
	$(RUN) -m bench batch --dry-run
	$(RUN) -m bench frames --dry-run
	$(RUN) -m bench serve --dry-run
	$(RUN) -m bench explain --dry-run

bench-gpu: $(READY)
	$(RUN) -m pytest -m gpu
	$(RUN) -m bench kernels
	$(RUN) -m bench generate

lease: $(READY)
	$(RUN) -m bench lease

mutants: $(READY)
	$(RUN) tests/mutants.py

# torch without gigabytes of CUDA where there is no GPU: a CPU build as pip is configured, else PyTorch's own
# CPU index, else whatever pip finds.
$(VENV)/.ready: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	if [ -e /proc/driver/nvidia/version ]; then \
	  $(VENV)/bin/python -m pip install --quiet torch==2.13.0; \
	else \
	  $(VENV)/bin/python -m pip install --quiet torch==2.13.0+cpu 2>/dev/null \
	  || $(VENV)/bin/python -m pip install --quiet torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu 2>/dev/null \
	  || $(VENV)/bin/python -m pip install --quiet torch==2.13.0; \
	fi
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[test,dev]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
