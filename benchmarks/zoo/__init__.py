"""Trains, exports and measures the zoo's rows and adds them to the manifest.

python -m benchmarks.zoo
"""
