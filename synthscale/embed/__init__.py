"""``manifest/`` -> ``embeddings/``: images, file metadata, encoders, edited copies."""
