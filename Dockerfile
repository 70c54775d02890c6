# syntax=docker/dockerfile:1
# One image for each service, with that service's packages and no others:
#   docker build --build-arg SERVICE=gateway --tag armature/gateway:0.1.0 .
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS build
ARG SERVICE
# For workers: `vllm` brings that, which pins its own versions, instead of the engine of ours.
ARG ENGINE
# Where packages come from, and so whether torch computes on CUDA or on CPUs only, is whoever builds to say.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
WORKDIR /src
RUN python -m venv /opt/armature
COPY pyproject.toml constraints.txt README.md LICENSE ./
# What others have written changes seldom: with packages of ours that are empty, this layer holds all of it.
RUN mkdir -p libs/armature services && touch libs/armature/__init__.py services/__init__.py
RUN if test "${ENGINE}" = vllm; \
    then /opt/armature/bin/pip install --no-cache-dir --disable-pip-version-check ".[vllm]"; \
    else /opt/armature/bin/pip install --no-cache-dir --disable-pip-version-check --constraint constraints.txt ".[${SERVICE}]"; fi
COPY libs libs
COPY services services
RUN /opt/armature/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --force-reinstall .
RUN printf '#!/bin/sh\nexec python -m services.%s "$@"\n' "$(echo "${SERVICE}" | tr - _)" > /opt/armature/bin/service
RUN chmod 755 /opt/armature/bin/service

FROM ${PYTHON}
ARG SERVICE
LABEL org.opencontainers.image.title="armature ${SERVICE}" org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --system --uid 10001 --no-create-home armature && install --directory --owner 10001 /var/lib/armature
COPY --from=build /opt/armature /opt/armature
ENV PATH=/opt/armature/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    HF_HUB_OFFLINE=1 \
    ARMATURE_HOST=0.0.0.0 \
    ARMATURE_HTTP_HOST=0.0.0.0 \
    ARMATURE_PORT=50051 \
    ARMATURE_METRICS_PORT=9090 \
    ARMATURE_LOG_FORMAT=json
USER 10001:10001
EXPOSE 50051 9090
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s --retries=3 CMD ["python", "-m", "armature.runtime.probe"]
ENTRYPOINT ["service"]
