# syntax=docker/dockerfile:1
# CPU:  docker build -t stillhouse .
# CUDA: docker build -t stillhouse:cuda --build-arg COMPUTE=cuda .
# Other domains: --build-arg EXTRAS="sam clip flows"

FROM python:3.11-slim-bookworm AS build
ARG COMPUTE=cpu
ARG EXTRAS="vision flows"
ENV UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
RUN pip install --no-cache-dir "uv>=0.9,<1"
WORKDIR /source
COPY pyproject.toml uv.lock README.md LICENSE ./
COPY packages packages
COPY plugins plugins
COPY flows flows
RUN uv build --all-packages --wheel --out-dir /wheels
# the versions of uv.lock; PyTorch without CUDA comes from PyTorch's own index
# hadolint ignore=SC2046
RUN uv export --locked --no-default-groups $(printf -- '--extra %s ' $EXTRAS) \
        --no-emit-workspace --no-hashes --no-annotate --no-header > /wheels/all.txt \
    && if [ "$COMPUTE" = cpu ]; then \
        grep -vE '^(nvidia-(cu|nccl|nv)|cuda-|triton)' /wheels/all.txt > /wheels/requirements.txt; \
    else \
        cp /wheels/all.txt /wheels/requirements.txt; \
    fi
# hadolint ignore=SC2086
RUN uv venv --python "$(command -v python)" /opt/stillhouse \
    && if [ "$COMPUTE" = cpu ]; then backend=--torch-backend=cpu; else backend=; fi \
    && uv pip install --python /opt/stillhouse/bin/python --no-cache --compile-bytecode $backend \
        --find-links /wheels -r /wheels/requirements.txt "stillhouse[${EXTRAS// /,}]"

FROM python:3.11-slim-bookworm
# git: flows keep runs on branches; libgomp: OpenMP of the numerical packages
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends git libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 stillhouse \
    && install -d -o stillhouse -g stillhouse /project /home/stillhouse/files
COPY --from=build /opt/stillhouse /opt/stillhouse
ENV PATH=/opt/stillhouse/bin:$PATH STILLHOUSE_HOME=/home/stillhouse/files STILLHOUSE_ROOT=/project
USER 1000
WORKDIR /project
ENTRYPOINT ["stillhouse"]
CMD ["--help"]
