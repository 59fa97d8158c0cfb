"""The stages of a run, one module each: they orchestrate on Ray, and call the pure modules to compute."""
