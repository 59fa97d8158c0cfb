"""synthscale: tells whether synthetic images are any good, with the evidence behind each number."""

__version__ = "0.1.0"
