# `make demo` and `make test` work on a bare machine: they build .venv when there is none.
VENV := .venv
# The Python that made .venv, else the machine's: `make install PYTHON=python3.12` is remembered.
PYTHON ?= $(or $(wildcard $(VENV)/bin/python),python3)
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
INSTALLED := $(VENV)/lib/python$(VERSION)/installed
DEMO := runs/demo
RESULTS := .pytest_cache/results
KEEP := --junitxml $(RESULTS)
# By Python: the first line of the script itself does not hold a path with spaces.
DEEPSPEED := python $(VENV)/bin/deepspeed --num_gpus 2
# Open MPI refuses to start for root unless told twice.
export OMPI_ALLOW_RUN_AS_ROOT := 1
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM := 1
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: demo test test-faults test-soak fault-table test-gpu check bench bench-layouts \
	bench-checkpoint bench-data install install-bench clean

install: $(INSTALLED)

# torch first and exactly: a range would fetch gigabytes of CUDA packages on a machine without GPU.
$(INSTALLED): pyproject.toml constraints/python$(VERSION).txt constraints/common.txt
	test -d $(@D) || rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet torch --constraint constraints/python$(VERSION).txt
	DS_BUILD_OPS=0 $(VENV)/bin/python -m pip install --quiet \
		--constraint constraints/python$(VERSION).txt --editable '.[dev,mpi,hf,text,fast]'
	touch $@

constraints/python%.txt:
	@echo "Python $* is not supported (3.11 to 3.13 are): make PYTHON=python3.12"; exit 1

demo: install
	rm -rf $(DEMO)
	python -m data_prep build data_prep/sample_books --output $(DEMO)/tokens --vocab-size 4096
	python -m data_prep verify $(DEMO)/tokens
	@echo "Layers shared by two processes, interrupted after the checkpoint of step 200:"
	$(DEEPSPEED) launch/pretrain.py configs/pretrain/tiny.yaml data.path=$(DEMO)/tokens \
		run.directory=$(DEMO)/run checkpoint.interval=100 parallel.tensor_parallel_size=2 \
		& launcher=$$!; trap "kill $$launcher" INT TERM; \
	until [ -d $(DEMO)/run/checkpoints/step-00000200 ]; do \
		kill -0 $$launcher 2> /dev/null || { echo "the run ended early"; exit 1; }; sleep 0.1; \
	done; \
	kill -TERM $$launcher; flock $(DEMO)/run/.lock true # which the run holds to its end
	test ! -d $(DEMO)/run/checkpoints/step-00000400
	@echo "Resumed with data parallel 2 and ZeRO 2:"
	$(DEEPSPEED) launch/pretrain.py configs/pretrain/tiny.yaml data.path=$(DEMO)/tokens \
		run.directory=$(DEMO)/run checkpoint.interval=100 parallel.zero_stage=2
	python launch/consolidate.py $(DEMO)/run --output $(DEMO)/model
	python launch/evaluate.py $(DEMO)/model --tokens $(DEMO)/tokens
	python launch/generate.py $(DEMO)/model --prompt "he looked at" --max-tokens 40
	python -m data_prep tasks data_prep/sample_books --output $(DEMO)/tasks
	@echo "Two tasks made of the books, from the sharded checkpoint and from nothing:"
	for task in author next; do \
		finetune="$(DEEPSPEED) launch/finetune.py configs/finetune/book-$$task.yaml \
			data.path=$(DEMO)/tasks/$$task run.directory=$(DEMO)/$$task"; \
		$$finetune-pretrained model.source=$(DEMO)/run && \
		$$finetune-from-nothing model.source=none data.tokenizer=$(DEMO)/run \
			model.num_layers=2 model.hidden_size=128 model.num_heads=4 model.sequence_length=128 \
			|| exit 1; \
	done
	python launch/scoreboard.py $(DEMO)/*-pretrained $(DEMO)/*-from-nothing

# The tests of layouts start more processes than a host may have GPUs.
# Those that start no processes run two at a time.
test: install
	CUDA_VISIBLE_DEVICES= python -m pytest tests/unit --numprocesses 2 $(KEEP)/unit.xml
	CUDA_VISIBLE_DEVICES= python -m pytest --ignore tests/unit $(KEEP)/processes.xml

check: install
	python -m ruff format --check .
	python -m ruff check .
	python -m codespell_lib
	python $(VENV)/bin/lint-imports
	python -m mypy

test-faults: install
	CUDA_VISIBLE_DEVICES= python -m pytest -m "faults and not soak" $(KEEP)/faults.xml

test-soak: install
	CUDA_VISIBLE_DEVICES= python -m pytest -m soak $(KEEP)/soak.xml

# Puts what the last `make test`, `make test-faults` and `make test-soak` have shown into the table.
fault-table: install
	python -m tests.fault_table docs/reliability.md $(wildcard $(RESULTS)/*.xml)

test-gpu: install
	python -m pytest -m gpu

# What the comparisons need beside this project.
install-bench: install
	$(VENV)/bin/python -m pip install --quiet \
		--constraint constraints/python$(VERSION).txt --editable '.[bench]'

# On a machine with a GPU the same, with the whole model and larger batches.
bench: install-bench
	python -m tests.benchmarks.training
	python -m tests.benchmarks.finetuning
	python -m tests.benchmarks.inference

bench-layouts: install
	python -m tests.benchmarks.layouts
	python -m tests.benchmarks.overhead

bench-checkpoint: install
	python -m tests.benchmarks.checkpoint

# `make bench-data DATA=FOLDER` builds from the texts of a folder instead of the bundled books.
bench-data: install-bench
	python -m tests.benchmarks.data $(DATA)

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache .mypy_cache
