"""Local disks and S3: filesystems, object GETs, listing, fetch, the run directory, the embedding cache."""
