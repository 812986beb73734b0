"""Runs and judges the proofs of the carried patch series; ``../proof.py`` is the command line.

The package runs on a bare machine: it needs NumPy, and of ``llama_images`` only modules that need no more
than the standard library. A part without time left is reported as "no time", never as passed.
"""
