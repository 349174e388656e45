# The service without the embedded Postgres' need to write: give it DATABASE_URL.
ARG BASE=python:3.13-slim-bookworm

FROM ${BASE} AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY service service
COPY sql sql
RUN python3 -m venv /opt/causeway && /opt/causeway/bin/pip install --no-cache-dir '.[server]'

FROM ${BASE}
LABEL org.opencontainers.image.title="Causeway" \
      org.opencontainers.image.description="Bridge's webhooks, proven, kept in one order, and handed on" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/causeway /opt/causeway
ENV PATH=/opt/causeway/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 CAUSEWAY_HOST=0.0.0.0
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/livez', timeout=4)"]
ENTRYPOINT ["causeway"]
CMD ["serve"]
