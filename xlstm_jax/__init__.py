"""The JAX/Flax stack for xLSTM."""

from xlstm_jax import interrupts

__version__ = "0.1.0"  # the only place that says so

# Before the imports of the command, which take seconds. A notebook's Ctrl-C stays its own.
if interrupts.is_command():
    interrupts.install_hooks()
