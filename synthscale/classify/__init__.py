"""``embeddings/``, ``groups/`` -> ``classifier/``, ``predictions/``: the k-fold real-vs-synthetic classifier."""
