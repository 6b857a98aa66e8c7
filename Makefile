# Every benchmark, on two cores, in a few minutes; benchmarks/README.md keeps what they printed last.
# One of them: make bench SCRIPTS=views
SCRIPTS = step queue_loss views folder extract knn load
.PHONY: bench
bench:
	cd benchmarks && for script in $(SCRIPTS); do \
		echo; echo "## $$script.py"; python $$script.py || exit 1; done
