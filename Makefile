# Each target does all of its own set-up; nothing but Python 3.11+ has to be there.
.PHONY: setup demo test lint bench soak up down images images-production
UV := $(shell command -v uv 2>/dev/null || echo .tools/bin/uv)
RUN := $(UV) run --frozen --all-extras

setup: $(UV)
	@$(UV) sync --frozen --all-extras --quiet --compile-bytecode
	@$(RUN) python -m compileall -q src

.tools/bin/uv:
	@scripts/get-uv .tools

demo: setup
	@$(RUN) cosmos demo $(if $(KEEP),--keep $(KEEP))

test: setup
	@$(RUN) scripts/test $(ARGS)

lint: setup
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@$(RUN) mypy
	@$(RUN) lint-imports

bench: setup
	@$(RUN) python -m benchmarks

soak: setup
	@$(RUN) pytest -m soak -q -s

# BUILD_ARGS: for example --network host
images:
	docker build $(BUILD_ARGS) --tag $${COSMOS_IMAGE:-cosmos-coherence:latest} .

images-production: images
	docker build $(BUILD_ARGS) --tag cosmos-coherence-nginx:latest docker/nginx
	docker build $(BUILD_ARGS) --tag cosmos-coherence-certbot:latest docker/certbot

up: images
	docker compose up --detach --wait

down:
	docker compose down
