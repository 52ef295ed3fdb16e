# One image for the API, the dashboard, the agent and every run of `cosmos` beside the volumes.
ARG PYTHON_IMAGE=python:3.11-slim
ARG DOCKER_CLI_IMAGE=docker:cli

FROM ${DOCKER_CLI_IMAGE} AS docker-cli

FROM ${PYTHON_IMAGE} AS build
ENV UV_PROJECT_ENVIRONMENT=/opt/cosmos UV_PYTHON=/usr/local/bin/python3 UV_PYTHON_DOWNLOADS=never \
    UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_NO_CACHE=1
RUN pip install --no-cache-dir uv
WORKDIR /build
COPY pyproject.toml uv.lock ./
RUN uv sync --frozen --no-dev --extra serve --extra remote --extra notify --no-install-project
COPY README.md LICENSE ./
COPY src src
RUN uv sync --frozen --no-dev --extra serve --extra remote --extra notify --no-editable

FROM ${PYTHON_IMAGE}
# /app/data and the cache are made here, so that new volumes mounted there belong to appuser
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends tzdata \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 1000 appuser \
 && useradd --uid 1000 --gid 1000 --create-home --shell /usr/sbin/nologin appuser \
 && install -d -o appuser -g appuser /app/data /app/data/outputs /app/data/cache /app/data/results /var/cache/cosmos \
 && install -d -m 0700 /var/lib/cosmos
COPY --from=docker-cli /usr/local/bin/docker /usr/local/bin/docker
COPY --from=docker-cli /usr/local/libexec/docker/cli-plugins/docker-compose /usr/local/libexec/docker/cli-plugins/docker-compose
COPY --from=build /opt/cosmos /opt/cosmos
COPY docker/entrypoint.sh /usr/local/bin/as-appuser
ENV PATH=/opt/cosmos/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin PYTHONUNBUFFERED=1
WORKDIR /app
CMD ["cosmos", "--help"]
