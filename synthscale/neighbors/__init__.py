"""``embeddings/`` -> ``neighbors/``, ``nearest/``, ``groups/``: near-duplicates and nearest rows."""
