"""Local disks and S3: file systems, object GETs, listings, image bytes, the run directory, the embedding cache."""
