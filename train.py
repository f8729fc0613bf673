"""Trains a model, or goes on with a run; `python train.py --help` says how.

python train.py --config=configs/NAME.py[:VARIANT] --workdir=DIR [--config.SECTION.KEY=VALUE ...]
"""

from xlstm_jax.training.command import main, program

__all__ = ["main"]

if __name__ == "__main__":
    program()
