.PHONY: run test fuzz audit sbom check lint install models bench attacks loadtest chaos soak fleet-test image image-test push release

run: ## install, and `polyhost demo`: serve the sample models, print calls to try
	scripts/run

test: ## install what the tests need and run all but those of the image; FAST=1 those without processes, LONG=1 at length, FRONTS=2 what clients see of so many fronts
	scripts/test $(if $(FAST),fast,$(if $(LONG),long,$(if $(FRONTS),fronts)))

fuzz: ## try what nobody has thought of, for MINUTES=10
	scripts/fuzz $(MINUTES)

audit: ## ask the vulnerability service about every pinned version; ARGS=--offline leaves it out
	scripts/audit $(ARGS)

sbom: ## write what is installed as CycloneDX; ARGS="image.json polyhost:mms" what an image holds
	scripts/sbom $(ARGS)

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

attacks: ## what neighbours wait while clients attack the server; fails over twice of quiet; ARGS="--engine mms --repeats 2"
	scripts/attacks $(ARGS)

loadtest: ## 300 users on two sizings side by side; MINUTES=15 USERS=300 SPAWN_RATE=5 WEB=1
	scripts/loadtest $(if $(MINUTES),--minutes $(MINUTES)) $(if $(USERS),--users $(USERS)) $(if $(SPAWN_RATE),--spawn-rate $(SPAWN_RATE)) $(if $(WEB),--web) $(ARGS)

chaos: ## faults under load, a table of each beside the real MMS; SHORT=1 a minute's worth, SEED=7 ONLY="S3 hangs" SELF_TEST=1
	scripts/chaos $(if $(SHORT),--short) $(if $(SELF_TEST),--self-test) $(if $(SEED),--seed $(SEED)) $(if $(ONLY),--only "$(ONLY)") $(ARGS)

soak: ## mixed traffic; fails where memory, descriptors, threads or files grow; MINUTES=30 SEED=7, SELF_TEST=1
	scripts/soak $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED)) $(if $(SELF_TEST),--self-test) $(ARGS)

fleet-test: ## three servers behind the real HAProxy and Envoy, five minutes at most
	scripts/fleet-test $(ARGS)

image: ## build the Docker image polyhost:mms
	scripts/image

image-test: ## build the images and test them
	scripts/image-test

push: ## build the Docker image for SageMaker and push it to ECR; ARGS="native REPOSITORY:TAG"
	scripts/build_and_push $(ARGS)

release: ## build and check the wheel, tag the version; ARGS=--dry-run tags nothing
	scripts/release $(ARGS)
