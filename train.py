"""Trains a model, or goes on with a run; `python train.py --help` says how."""

from xlstm_jax.training.command import main, program

__all__ = ["main"]

if __name__ == "__main__":
    program()
