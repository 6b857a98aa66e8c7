# Every benchmark, on two cores, in a few minutes; benchmarks/README.md keeps what they printed last.
# One of them: make bench SCRIPTS=views
SCRIPTS = step cpu_step flags queue_loss views folder extract knn load roofline
.PHONY: bench
bench:
	cd benchmarks && for script in $(SCRIPTS); do \
		echo; echo "## $$script.py"; python $$script.py || exit 1; done

# Against lightly and LightlyTrain for the same wall clock, in an environment of theirs, PEERS.
# make bench-peers DATA=FOLDER/cifar10 MINUTES=20; ON=test reads the test images.
PEERS = .venv-peers
MINUTES = 20
ON = held-out
.PHONY: bench-peers
bench-peers: $(PEERS)/bin/lightly-train
	PYTHONPATH=. python benchmarks/peers.py "$(DATA)" --peers $(PEERS)/bin/python \
		--minutes $(MINUTES) --seeds 0 1 2 --on $(ON)
$(PEERS)/bin/lightly-train:
	python -m venv $(PEERS)
	$(PEERS)/bin/pip install "lightly>=1.6.0" "lightly-train>=0.18.0" "timm>=1.0.31" \
		"torch>=2.15.0" "torchvision>=0.29.2"

# What holds under faults, with large counts, in an hour or so; docs/reliability.md is of these.
# One of them: make faults FAULTS=kills
FAULTS = kills file_calls full_disks stop_signals odd_images mutated_images mutated_files command_lines
FAULTS += launched_runs
.PHONY: faults
faults:
	python -W ignore tests/faults/run.py $(FAULTS)

# On a machine with a CUDA device, in some minutes; with two of them also what two processes compute.
.PHONY: test-gpu
test-gpu:
	python -m pytest -q tests/gpu
	python benchmarks/bench_gpu.py

# A release from this checkout: checks, wheel, weights to the Hub, their pins; RELEASING.md has the steps.
# make release ORG=name, and CHECKS=quick for those of some minutes instead of .ci/run
CHECKS = all
.PHONY: release
release:
	@CGH_LONG=1 python -m benchmarks.zoo.release "$(ORG)" "$(CHECKS)"
