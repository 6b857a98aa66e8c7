# Every benchmark, on two cores, in a few minutes; benchmarks/README.md keeps what they printed last.
.PHONY: bench
bench:
	cd benchmarks && for script in step queue_loss views folder extract knn load; do \
		echo; echo "## $$script.py"; python $$script.py || exit 1; done
