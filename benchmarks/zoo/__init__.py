"""The zoo's rows: trained, exported, measured and added to the manifest by `python -m benchmarks.zoo`."""
