"""The JAX/Flax stack for xLSTM."""

from xlstm_jax import interrupts

# Before the imports of the command, which take seconds. A notebook's Ctrl-C stays its own.
if interrupts.is_command():
    interrupts.install_hooks()
