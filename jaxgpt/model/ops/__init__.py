"""Functions of the network that define their own gradient (custom VJP) or differ by platform.

Each one equals its textbook definition up to rounding. They exist because compilers make poor programs of the derived
gradients. Differences between CPU and GPU are decided here and nowhere else, when a program is lowered
(`jax.lax.platform_dependent`).
"""
