"""Real-vs-synthetic classifier: k-fold fit and out-of-fold logits.

Reads ``embeddings/``, ``groups/``, ``nearest/`` and ``manifest/``. Writes ``classifier/`` (fold assignments and
fitted models) and ``predictions/`` (logits). `stage.py` runs it on Ray; the modules ``ray_*`` need Ray, the others
do not.
"""
