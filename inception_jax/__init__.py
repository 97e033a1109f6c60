"""The Inception family in JAX: train, reproduce, ablate and deploy GoogLeNet."""

__version__ = "0.1.0"
