"""Compressors: a region's tokens and mask in, a few latents out. Baselines stand beside them.

Nothing but this docstring may stand here: from Python 3.14 the standard library has a package of
the same name (see `pipelines/__init__.py`).
"""
