# syntax=docker/dockerfile:1
FROM python:3.13-slim AS build
WORKDIR /build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
# The environment is filled from outside and holds no pip of its own.
RUN python -m venv --without-pip /opt/batchscore
COPY requirements.lock ./
RUN python -m pip --python /opt/batchscore/bin/python install --require-hashes --only-binary :all: -r requirements.lock
# The build backend comes from the developers' lock file, by hash like everything else.
COPY requirements-dev.lock ./
RUN awk '/^[a-z]/ { wanted = /^(hatchling|packaging|pathspec|pluggy|tomlkit|trove-classifiers)==/ } wanted' \
    requirements-dev.lock > build.lock \
    && python -m venv tools && tools/bin/python -m pip install --require-hashes --only-binary :all: -r build.lock
COPY pyproject.toml README.md LICENSE ./
COPY batchscore batchscore
RUN tools/bin/python -m pip wheel --no-deps --no-build-isolation --wheel-dir dist . \
    && python -m pip --python /opt/batchscore/bin/python install --no-deps dist/*.whl

FROM python:3.13-slim
LABEL org.opencontainers.image.title="batchscore" \
    org.opencontainers.image.description="Score a scikit-learn model over a warehouse every night" \
    org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/batchscore /opt/batchscore
WORKDIR /batchscore
# Mount your own over these, or copy them in a child image.
COPY jobs jobs
COPY sql sql
ENV PATH=/opt/batchscore/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# A number, so that Kubernetes can see it is not root.
USER 10001:10001
ENTRYPOINT ["batchscore"]
CMD ["--help"]
