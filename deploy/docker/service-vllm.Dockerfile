# The inference service with vLLM as its engine, for NVIDIA GPUs. From the repository's root:
#
#   docker build -f deploy/docker/service-vllm.Dockerfile -t chatrpc-service-vllm:0.1.0 .
#
# The wheels of torch and vLLM contain CUDA's libraries, so the base is the plain Python image. The driver comes from
# the host, through NVIDIA's container toolkit. It contains no model. The image runs with a read-only root filesystem
# and a writable /tmp, from which it also loads compiled kernels, as any user. /dev/shm needs some GiB if a model
# uses several GPUs: docker run --shm-size.

# Add the digest to get the same bytes each time.
ARG PYTHON_IMAGE=docker.io/library/python:3.11.15-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
# A package index to use instead of PyPI.
ARG PIP_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
RUN python -m venv --without-pip /opt/chatrpc
# The slowest step comes first, in a layer that a change of our code does not rebuild.
COPY deploy/docker/constraints-vllm.txt ./
RUN python -m pip --python /opt/chatrpc/bin/python install --constraint constraints-vllm.txt vllm
COPY pyproject.toml README.md ./
COPY protos/chatrpc ./protos/chatrpc
COPY service ./service
COPY gateway_http ./gateway_http
COPY chatrpc_cli ./chatrpc_cli
COPY chatrpc_process ./chatrpc_process
RUN python -m pip --python /opt/chatrpc/bin/python install --constraint constraints-vllm.txt '.[vllm,vllm-protocol,cli,otel]'

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="chatrpc-service-vllm" \
      org.opencontainers.image.description="Language models over gRPC with vLLM, on NVIDIA GPUs" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# Triton and torch compile kernels when a model is loaded.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
# The mount point of a volume with weights. A named volume gets this mode, so any user may write to it.
RUN mkdir -m 1777 /var/lib/chatrpc
COPY --from=build /opt/chatrpc /opt/chatrpc
# HOME: a directory in which libraries may write, also kernels that are compiled. NVIDIA_*: settings of the
# container toolkit.
ENV PATH=/opt/chatrpc/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    VLLM_NO_USAGE_STATS=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    CHATRPC_SERVICE_ENGINE=vllm \
    CHATRPC_SERVICE_HOST=0.0.0.0 \
    CHATRPC_SERVICE_PORT=50051 \
    CHATRPC_SERVICE_ADMIN_PORT=50052 \
    CHATRPC_SERVICE_LOG_FORMAT=json
WORKDIR /opt/chatrpc
EXPOSE 50051 50052
USER 65532:65532
STOPSIGNAL SIGTERM
# For Docker; Kubernetes uses its own probes. The admin port has no TLS, even if the other port has.
HEALTHCHECK --interval=10s --timeout=5s --start-period=900s --retries=3 \
    CMD ["/opt/chatrpc/bin/chatrpc", "health", "readiness", "--target", "127.0.0.1:50052"]
ENTRYPOINT ["/opt/chatrpc/bin/python", "-m", "service"]
