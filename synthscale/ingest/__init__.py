"""Input discovery: read folders, archives, tables or precomputed vectors, check them and write ``manifest/``."""
