"""One module a claim: `python -m benchmarks.NAME [--full]` races a peer in the same run and prints JSON lines."""
