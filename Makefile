# `make demo` on a fresh clone does everything. Variables: PYTHON (3.11 or newer), CORES, CONFIG, PROFILE,
# PIP_ARGS, ARGUMENTS, WORKERS.
PYTHON ?= python3
CORES ?= all
CONFIG ?= config/demo.yaml
PROFILE ?= slurm
# For pip, e.g. PIP_ARGS="--extra-index-url URL" with PyTorch's index of CPU wheels where there is no GPU
PIP_ARGS ?=
# For the tool behind a target, e.g. ARGUMENTS="-k config" with test
ARGUMENTS ?=
# Of the tests, which wait for processes that they start: three keep two cores busy.
WORKERS ?= 3

# A progress bar for each rule on a terminal, plain lines elsewhere. Snakemake writes to standard error.
LOGGER = $$([ -t 2 ] && echo --logger rich)

SHELL := /bin/bash -euo pipefail
.DEFAULT_GOAL := help
.PHONY: demo status plan verify crate test lint format docs bench storm images doctor report clean help

# Rules run what is first on PATH.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

demo: .venv/run.stamp ## install, run the whole workflow on the embedded default, print the report's path
	@PYTHONPATH=src python -m lpc.unlock --configfile config/demo.yaml
	snakemake all --cores $(CORES) --configfile config/demo.yaml $(LOGGER)
	@echo "The report: $(CURDIR)/results/demo/report.html"

status: .venv/run.stamp ## show how far CONFIG is: by rule the jobs done, running, failed and waiting
	@PYTHONPATH=src python -m lpc.status --configfile $(CONFIG)

plan: .venv/run.stamp ## show what a run of CONFIG would do: jobs, why, how long, finished models that it would delete
	@PYTHONPATH=src python -m lpc.plan --configfile $(CONFIG)

verify: .venv/run.stamp ## compare the finished results of CONFIG with the digests in their records
	@PYTHONPATH=src python -m lpc.verify --configfile $(CONFIG)

crate: .venv/crate.stamp ## describe the finished results of CONFIG as an RO-Crate
	@PYTHONPATH=src python -m lpc.crate --configfile $(CONFIG) $(ARGUMENTS)

test: .venv/test.stamp ## install and run the tests
	pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGUMENTS)

lint: .venv/test.stamp ## check style and formatting of Python and Snakemake files
	ruff check
	ruff format --check
	snakefmt --check Snakefile workflow
	snakemake --lint --configfile config/demo.yaml

format: .venv/test.stamp ## rewrite Python and Snakemake files in the project's format
	ruff check --fix
	ruff format
	snakefmt Snakefile workflow

docs: .venv/docs.stamp ## build the documents as a site in site/
	mkdocs build --strict

bench: .venv/bench.stamp ## measure speed and memory against peers
	mkdir -p results/bench
	python benchmarks/training.py --steps 3 --output results/bench/training-128256.json
	python benchmarks/training.py --vocabulary 4096 --means --steps 8 --rounds 2 --output results/bench/training-4096.json
	python benchmarks/packing.py --output results/bench/packing.json
	python benchmarks/data.py --output results/bench/data.json
	python benchmarks/workflow.py --output results/bench/workflow.json
	python benchmarks/harness.py --output results/bench/harness.json

storm: .venv/test.stamp ## kill the workflow at 50 random moments, and compare its results with an undisturbed run's
	rm -rf results/storm/work
	python tests/storm/storm.py --work results/storm/work --output results/storm $(ARGUMENTS)

images: .venv/images.stamp ## install for a cluster and build the container images that are out of date
	python containers/build.py $(ARGUMENTS)

doctor: .venv/images.stamp ## check SLURM, images, folders and limits for PROFILE and CONFIG
	@PYTHONPATH=src python -m lpc.doctor --profile $(PROFILE) --configfile $(CONFIG)

report: .venv/run.stamp ## Snakemake's own report on the finished results of CONFIG
	snakemake --configfile $(CONFIG) --report results/snakemake-report.html
	@echo "The report: $(CURDIR)/results/snakemake-report.html"

clean: ## delete the environment and caches; results stay
	rm -rf .venv .pytest_cache .ruff_cache build src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is older than Python 3.11; call make with PYTHON=/path/to/python3.11 or newer" >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/%.stamp: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing into .venv, a minute or two ..."
	@.venv/bin/python -m pip install --quiet $(PIP_ARGS) --constraint constraints.txt --editable ".$(EXTRAS)"
	@touch $@

.venv/run.stamp: EXTRAS := [terminal]
.venv/test.stamp: EXTRAS := [test,lint,slurm,images]
.venv/crate.stamp: EXTRAS := [crate]
.venv/bench.stamp: EXTRAS := [bench]
.venv/docs.stamp: EXTRAS := [docs]
# What a login node needs: the build of the images, and the submission of jobs.
.venv/images.stamp: EXTRAS := [slurm,images]
