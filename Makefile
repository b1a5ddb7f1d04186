.PHONY: run test check lint install models bench loadtest image image-test push

run: ## install, serve the sample models, print calls to try
	scripts/run

test: ## install what the tests need and run all but those of the image; FAST=1 those without processes, LONG=1 at length
	scripts/test $(if $(FAST),fast,$(if $(LONG),long))

check: ## lint, types and tests
	scripts/check

lint: ## ruff and mypy
	scripts/lint

install: ## what serving needs, into .venv
	scripts/install

models: ## train the sample models
	scripts/make-models

bench: ## native beside the real MMS; PARTS="throughput load" REPEATS=3 ARGS=--quick
	scripts/bench $(if $(REPEATS),--repeats $(REPEATS)) $(ARGS) $(PARTS)

loadtest: ## 300 users on two sizings side by side; MINUTES=15 USERS=300 SPAWN_RATE=5 WEB=1
	scripts/loadtest $(if $(MINUTES),--minutes $(MINUTES)) $(if $(USERS),--users $(USERS)) $(if $(SPAWN_RATE),--spawn-rate $(SPAWN_RATE)) $(if $(WEB),--web) $(ARGS)

image: ## build the Docker image polyhost:mms
	scripts/image

image-test: ## build the images and test them
	scripts/image-test

push: ## build the Docker image for SageMaker and push it to ECR; ARGS="native REPOSITORY:TAG"
	scripts/build_and_push $(ARGS)
