"""synthscale: tells whether synthetic images are any good, with the evidence behind each number."""
