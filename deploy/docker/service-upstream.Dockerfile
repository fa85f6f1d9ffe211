# The service in front of an OpenAI-compatible service, without torch and without a model. From the repository's root:
#
#   docker build -f deploy/docker/service-upstream.Dockerfile -t chatrpc-service-upstream:0.1.0 .
#
# The process writes no files. It runs with a read-only root filesystem, without a volume, as any user.

# Add the digest to get the same bytes each time.
ARG PYTHON_IMAGE=docker.io/library/python:3.11.15-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
# A package index to use instead of PyPI.
ARG PIP_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
RUN python -m venv --without-pip /opt/chatrpc
COPY pyproject.toml README.md deploy/docker/constraints.txt ./
COPY protos/chatrpc ./protos/chatrpc
COPY service ./service
COPY gateway_http ./gateway_http
COPY chatrpc_cli ./chatrpc_cli
COPY chatrpc_process ./chatrpc_process
RUN python -m pip --python /opt/chatrpc/bin/python install --constraint constraints.txt '.[upstream,cli,otel]'

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="chatrpc-service-upstream" \
      org.opencontainers.image.description="The gRPC API of chatrpc for OpenAI-compatible services" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/chatrpc /opt/chatrpc
# HOME: a directory in which libraries may write.
ENV PATH=/opt/chatrpc/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    CHATRPC_SERVICE_ENGINE=openai \
    CHATRPC_SERVICE_HOST=0.0.0.0 \
    CHATRPC_SERVICE_PORT=50051 \
    CHATRPC_SERVICE_ADMIN_PORT=50052 \
    CHATRPC_SERVICE_LOG_FORMAT=json
EXPOSE 50051 50052
USER 65532:65532
STOPSIGNAL SIGTERM
# For Docker; Kubernetes uses its own probes. The admin port has no TLS, even if the other port has.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["/opt/chatrpc/bin/chatrpc", "health", "readiness", "--target", "127.0.0.1:50052"]
ENTRYPOINT ["/opt/chatrpc/bin/python", "-m", "service"]
