# The service for production: it needs DATABASE_URL and writes nothing. No compiler, no pip and no
# embedded Postgres come into the result; every package is the one that locks/ names, by its hash.
#
#   docker build -t causeway:0.1.0 .
#
# Pin the base by its digest where you build (--build-arg BASE=python:3.13.7-slim-bookworm@sha256:...);
# any image with python3 (3.11 or newer) and its venv serves. The same base, sources and --timestamp
# give the same image, byte for byte.
ARG BASE=python:3.13.7-slim-bookworm

FROM ${BASE} AS build
WORKDIR /src
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
COPY locks locks
RUN python3 -m venv /tools \
 && /tools/bin/pip install --require-hashes --only-binary :all: -r locks/build.txt \
 && python3 -m venv --without-pip /opt/causeway \
 && /tools/bin/pip --python /opt/causeway/bin/python3 install --no-compile \
        --require-hashes --only-binary :all: -r locks/server.txt
COPY pyproject.toml README.md LICENSE ./
COPY service service
COPY sql sql
# Bytecode that is valid whatever the files' times are: the same in every build, and never rewritten.
RUN /tools/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
 && /tools/bin/pip --python /opt/causeway/bin/python3 install --no-compile --no-deps --no-index /wheels/*.whl \
 && find /opt/causeway -name direct_url.json -delete \
 && PYTHONHASHSEED=0 /opt/causeway/bin/python3 -m compileall -q -f --invalidation-mode unchecked-hash /opt/causeway/lib

FROM ${BASE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Causeway" \
      org.opencontainers.image.description="Bridge's webhooks, proven, kept in one order, and handed on" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/causeway /opt/causeway
ENV PATH=/opt/causeway/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 CAUSEWAY_HOST=0.0.0.0
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/livez', timeout=4)"]
ENTRYPOINT ["causeway"]
CMD ["serve"]
