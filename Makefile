# Each target does its own set-up: a virtual environment in .venv, filled from the hash-pinned lock file.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A process for each of two cores, and no more threads than cores: they would only wait for each other.
PYTEST := POLARS_MAX_THREADS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

.PHONY: install demo test proof image-test integrations torture check audit bench bench-quick lock clean

install: $(READY)

$(READY): requirements-dev.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "batchscore needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Say make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	touch $@

demo: $(READY)
	$(BIN)/batchscore demo

test: $(READY)
	$(PYTEST)

# Every way to break a run at every boundary, and whole runs, on DuckDB, SQLite, Postgres and MariaDB, of which `make test`
# has the kills and the runs on Postgres; disasters; the demo, and whatever is on MariaDB.
proof: $(READY)
	$(PYTEST) -m long

# The image, built with buildah, and each pod of k8s/ run in it with runc; needs Linux and root.
image-test: $(READY)
	$(BIN)/python -m pytest -m image

# docs/integrations with the real Airflow, Dagster and MLflow server, and Evidently, which are in no other environment.
integrations: $(READY) .venv-airflow/.ready .venv-dagster/.ready .venv-evidently/.ready .venv-mlflow/.ready
	$(PYTEST) -m integrations

# By the pip that requirements-dev.lock pins: before 23.3, which Python 3.11 brings along, pip takes a requirement such as
# pandas[parquet] for one without a hash.
.venv-%/.ready: docs/integrations/%.lock $(READY)
	$(PYTHON) -m venv --without-pip .venv-$*
	$(BIN)/python -m pip --python .venv-$* install --quiet --disable-pip-version-check --require-hashes -r $<
	touch $@

# A bundle is served where batchscore is.
.venv-mlflow/.ready: docs/integrations/mlflow.lock pyproject.toml $(READY)
	$(PYTHON) -m venv --without-pip .venv-mlflow
	$(BIN)/python -m pip --python .venv-mlflow install --quiet --disable-pip-version-check --require-hashes -r $<
	$(BIN)/python -m pip --python .venv-mlflow install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	touch $@

# Some ten minutes: random kills by the hundred, with a reader that looks for half an interval all the while.
torture: $(READY)
	$(BIN)/python tests/torture.py

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile
	$(BIN)/shellcheck .ci/*
	$(BIN)/actionlint -shellcheck $(BIN)/shellcheck .github/workflows/*.yml
	$(BIN)/zizmor --offline --quiet --pedantic --strict-collection .github

# Asks PyPI for advisories, and so is no part of `make check`. Strict: what PyPI does not know was not audited.
audit: $(READY)
	$(BIN)/pip-audit --strict --require-hashes --disable-pip --progress-spinner off $(addprefix -r ,$(filter-out requirements-dev.lock,$(wildcard requirements*.lock)))

# Some 25 minutes: peers and this project in turn, into benchmarks/RESULTS.md; bench-quick, into .bench/, takes three.
bench: $(READY) .venv-bench/.ready
	$(BIN)/python -m benchmarks.speed

bench-quick: $(READY) .venv-bench/.ready
	$(BIN)/python -m benchmarks.speed --quick --out .bench

# The peers that are in no other environment. Each loads the model file, and so has our scikit-learn.
.venv-bench/.ready: benchmarks/peers.lock $(READY)
	$(PYTHON) -m venv --without-pip .venv-bench
	$(BIN)/python -m pip --python .venv-bench install --quiet --disable-pip-version-check --require-hashes -r $<
	touch $@

# Needs uv. No file names an index.
LOCK := uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11
lock:
	$(LOCK) pyproject.toml -o requirements.lock
	for extra in compile dask delta demo lightgbm mariadb mlflow openlineage otel prometheus ray s3 xgboost; do $(LOCK) pyproject.toml --extra $$extra --constraint requirements.lock -o requirements-$$extra.lock; done
	$(LOCK) --group image -o requirements-image.lock
	$(LOCK) pyproject.toml --all-extras --group dev -o requirements-dev.lock
	$(LOCK) --group airflow -o docs/integrations/airflow.lock
	$(LOCK) --group dagster -o docs/integrations/dagster.lock
	$(LOCK) --group evidently -o docs/integrations/evidently.lock
	$(LOCK) pyproject.toml --group mlflow -o docs/integrations/mlflow.lock
	$(LOCK) pyproject.toml --group bench -o benchmarks/peers.lock

clean:
	rm -rf $(VENV) .venv-* var
