"""What arrays are called in messages, patterns and files: params/conv1/7x7_s2/kernel."""

import jax


def name_of(path) -> str:
    """The name of an array, from its path in a tree, as jax.tree_util has it."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
