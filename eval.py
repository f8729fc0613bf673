"""Evaluates a run, an imported model or a Hugging Face checkpoint; --help says how.

python eval.py --workdir=RUN [--suite=perplexity,extrapolation,generation,paloma,downstream]
"""

import sys

from xlstm_jax.evaluation.command import main

if __name__ == "__main__":
    sys.exit(main())
