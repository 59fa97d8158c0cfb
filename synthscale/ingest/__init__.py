"""Inputs -> ``manifest/``: folders, archives, tables, precomputed vectors, checks, the held-out control."""
