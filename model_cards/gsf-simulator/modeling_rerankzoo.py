"""Lets transformers find the classes of this checkpoint, with trust_remote_code=True.

They live in the package rerankzoo: pip install rerankzoo
"""

import rerankzoo


def __getattr__(name):
    return getattr(rerankzoo, name)
