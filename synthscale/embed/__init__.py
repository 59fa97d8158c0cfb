"""Embed the images of ``manifest/``: write ``embeddings/`` (vectors, file metadata) and ``failures/``."""
