"""Table 1 of arXiv 2405.04517 at a size that two CPU cores train: every model with D 128, on the
same tokens.

A variant is a row of the table, as xlstm_1_0:

    row         blocks  parameters  paper's perplexity at 350M (SlimPajama, 15B tokens)
    gpt3        8       1.59M       14.26
    llama       8       1.61M       14.25
    h3          7       1.56M       18.23
    mamba       14      1.63M       13.70
    hyena       7       1.69M       17.59
    rwkv4       7       1.50M       15.62
    rwkv5       7       1.62M       14.25
    rwkv6       7       1.56M       15.03
    retnet      7       1.52M       16.23
    hgrn        8       1.61M       17.59
    gla         8       1.63M       16.15
    hgrn2       8       1.61M       14.32
    xlstm_1_0   15      1.64M       13.43
    xlstm_7_1   15      1.64M       13.48

and, of tables 2 and 8, the ladder from the LSTM (lstm, lstm_residual, lstm_block, xlstm_0_1), the
gates of xLSTM[1:0] (gates_none_inf to gates_forget_and_bias) and the blocks around its memory
(memory_post_up, memory_no_conv).

Tokens: 250 steps x 8 x 256 = 512,000, bytes of the standard library's source unless data.path is
set (all rows read the same). Expected loss: held out 1.53 (mamba) to 2.48 (hyena) nats (measured,
docs/comparison.md). No number of this size stands for one of the paper's.

Each model is that of its family's file at 350m-15b with an eighth of the dimension, and with so
many blocks that about 1.6 million parameters are neither embedding nor vocabulary projection. What
does not scale by itself is set here: 4 heads of 32 channels where a file has heads of 64 or 128 in
1024, ranks in proportion to the dimension, gated layers rounded up to a multiple of 16. The sLSTM
blocks of xLSTM[7:1] are the 3rd and the 13th, about where the paper's 24 blocks have them. Each
model is trained with two peak learning rates and the better one is shown; the last learning rate is
2e-4.

    python train.py --config=configs/comparison.py:mamba --workdir=DIR
    python -m benchmarks.compare
"""

import importlib

from xlstm_jax.analysis.paper import values as paper
from xlstm_jax.errors import UserError
from xlstm_jax.experiments.grid import Experiment

from . import base

FULL_DIM, DIM, HEAD_DIM = 1024, 128, 32
# perplexities that the paper prints, by how it calls the models
TABLE_1 = {name: row["ppl_v2"] for name, row in paper.rows_of("table1_15B").items()}
LADDER = {name: perplexity for name, _, perplexity in paper.TABLES["table2_components"]}
OF_GATES = dict(paper.TABLES["table2_gating"])
MEMORIES = {name: perplexity for name, _, perplexity in paper.TABLES["table8_matrix_memory"]}
# row -> how the paper calls it, config file and variant, blocks
MODELS = {
    "gpt3": ("GPT-3", "gpt3", "350m-15b", 8),
    "llama": ("Llama", "llama", "350m-15b", 8),
    "h3": ("H3", "h3", "350m-15b", 7),
    "mamba": ("Mamba", "mamba", "350m-15b", 14),
    "hyena": ("Hyena", "hyena", "350m-15b", 7),
    "rwkv4": ("RWKV-4", "rwkv4", "350m-15b", 7),
    "rwkv5": ("RWKV-5", "rwkv5", "350m-15b", 7),
    "rwkv6": ("RWKV-6", "rwkv6", "350m-15b", 7),
    "retnet": ("RetNet", "retnet", "350m-15b", 7),
    "hgrn": ("HGRN", "hgrn", "350m-15b", 8),
    "gla": ("GLA", "gla", "350m-15b", 8),
    "hgrn2": ("HGRN2", "hgrn2", "350m-15b", 8),
    "xlstm_1_0": ("xLSTM[1:0]", "xlstm_350m", "1_0-15b", 15),
    "xlstm_7_1": ("xLSTM[7:1]", "xlstm_350m", "7_1-15b", 15),
}
# the same, and the paper's perplexity
ROWS = {name: (*row, TABLE_1[row[0]]) for name, row in MODELS.items()}
# those of configs/ablations.py: tables 2 and 8
GATES = {
    "none_inf": "none, f bias +inf",
    "none": "none, f bias [3,6]",
    "forget": "forget gate",
    "input": "input gate",
    "forget_bias": "f bias learnable",
    "both_biases": "f+i bias learnable",
    "forget_and_bias": "forget gate + learnable i bias",
}
ABLATIONS = {
    "lstm": ("LSTM", "ablations", "lstm", 12, LADDER["LSTM vanilla 24x1536"]),
    "lstm_residual": ("LSTM, residual", "ablations", "lstm_residual", 12,
                      LADDER["+ resnet backbone"]),
    "lstm_block": ("LSTM(Block)", "ablations", "lstm_block", 6,
                   LADDER["+ up-projection backbone"]),
    "xlstm_0_1": ("xLSTM[0:1]", "ablations", "xlstm_0_1", 8,
                  LADDER["xLSTM[0:1] (+ exponential gating)"]),
    **{
        f"gates_{name}": (f"gates: {name}", "ablations", f"gates-{name}", 15, OF_GATES[printed])
        for name, printed in GATES.items()
    },
    "memory_post_up": ("memory: post-up", "ablations", "memory-post_up", 7,
                       MEMORIES["post-up ReLU^2, 24 blocks"]),
    "memory_no_conv": ("memory: no convolution", "ablations", "memory-no_conv", 15,
                       MEMORIES["pre-up no conv, 48"]),
}  # fmt: skip
# of `python -m benchmarks.compare --rows`
GROUPS = {
    "table1": tuple(ROWS),
    "ladder": ("lstm", "lstm_residual", "lstm_block", "xlstm_0_1", "xlstm_7_1"),
    "gates": (*(f"gates_{name}" for name in GATES), "xlstm_1_0"),
    "memory": ("memory_post_up", "memory_no_conv", "xlstm_1_0"),
}
SLSTM_POSITIONS = (2, 12)
CELL = "text"
RATES, LAST_RATE = (2e-3, 6e-3), 2e-4


def get_config(variant: str = "xlstm_1_0"):
    rows = ROWS | ABLATIONS
    if variant not in rows:
        raise UserError(
            f"config variant {variant!r} does not exist; the variants of this file are "
            f"{', '.join(rows)}"
        )
    _, file, of_file, num_blocks, _ = rows[variant]
    config = base.get_config()
    config.model = _family(file).get_config(of_file).model
    model = config.model
    model.dim, model.num_blocks = DIM, num_blocks
    model.vocab_size = base.get_config().model.vocab_size
    model.remat = "none"
    stack = model.blocks
    if file == "xlstm_350m" and "slstm" in stack:
        model.blocks = base.with_slstm(num_blocks, SLSTM_POSITIONS)
    if "attention" in stack:
        model.attention.num_heads = DIM // HEAD_DIM
    if "rwkv6" in stack:
        model.rwkv6.mix_rank, model.rwkv6.decay_rank = DIM // 32, DIM // 16
    if "hgrn2" in stack:
        model.hgrn2.head_dim = HEAD_DIM
    if "mlp" in stack and model.mlp.hidden is not None:
        model.mlp.hidden //= FULL_DIM // DIM
    elif "mlp" in stack and model.mlp.gated and "slstm" not in stack:
        model.mlp.round_to = 16

    config.data.context_length = 256
    config.data.batch_size = 8
    config.optimizer.learning_rate = RATES[0]
    config.optimizer.final_fraction = LAST_RATE / RATES[0]
    config.optimizer.eps = 1e-8
    config.optimizer.warmup_steps = 25
    config.train.steps = 250
    config.log.every = 10
    config.log.tensorboard = False
    config.eval.every = 250
    config.eval.max_tokens = 100_000
    config.eval.sample_tokens = 0
    config.checkpoint.every = 125
    return config


def get_experiment(preset: str) -> Experiment:
    """The grid that `python -m benchmarks.compare` trains, one row of the table after another."""
    if preset != "small":
        raise UserError(
            f"--preset is {preset!r}; it must be small. The paper's own sizes are the variants "
            "350m-15b of the models' files"
        )
    rows = ROWS | ABLATIONS
    return Experiment(
        title="Table 1 at D 128",
        variant="{model}",
        cells=(CELL,),
        models={name: row[0] for name, row in rows.items()},
        dims={CELL: (DIM,)},
        learning_rates={CELL: RATES},
        last_rate=LAST_RATE,
        seeds=1,
        metric="perplexity",
        chosen_by=("validation", "perplexity"),
        higher_is_better=False,
        figure="bars",
        paper={label: {CELL: p} for label, *_, p in rows.values() if p is not None},
        notes=(
            "The paper's numbers are of models of 350M parameters on 15B tokens of SlimPajama.",
        ),
    )


def _family(name: str):
    return importlib.import_module(f".{name}", __package__)
