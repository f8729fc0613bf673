"""Evaluates a run, an imported model or a Hugging Face checkpoint; `python eval.py --help` says
how.
"""

import sys

from xlstm_jax.evaluation.command import main

if __name__ == "__main__":
    sys.exit(main())
