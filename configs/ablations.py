"""The ablations of arXiv 2405.04517 (tables 2 and 8) on SlimPajama, models of the size 350M.

From the LSTM to xLSTM[7:1], table 2 above:

    variant             parameters  expected held-out loss, nats per GPT-2 token
    lstm                    607.8M  7.791 (paper: perplexity 2417.86): it does not learn
    lstm_residual           506.1M  3.568 (paper: perplexity 35.46)
    lstm_block              505.9M  3.258 (paper: perplexity 26.01)
    xlstm_0_1               427.3M  2.874 (paper: perplexity 17.70)
    xlstm_7_1               408.4M  2.601 (paper: perplexity 13.48)

`lstm` has neither skips nor norms, 24 layers of D 1536; `lstm_residual` 48 layers of D 1024;
`lstm_block` has a GELU layer of 4 D in place of every second LSTM. The paper's xLSTM[0:1] here is
not the one of its other tables: by its printed number of parameters it has 24 blocks whose gates
see all channels, and 2,688 channels in the gated layer.

What the gates of xLSTM[1:0] see, table 2 below; "none" has fixed gates, "bias" learned ones that
are the same for all tokens, "gate" the usual ones. The input gate's bias is 0 where it is fixed:

    gates-none_inf          406.9M  not a number in the paper: nothing is ever forgotten
    gates-none              406.9M  2.635 (paper: perplexity 13.95)
    gates-forget            408.1M  2.609 (paper: perplexity 13.58)
    gates-input             408.1M  2.617 (paper: perplexity 13.69)
    gates-forget_bias       406.9M  2.622 (paper: perplexity 13.76)
    gates-both_biases       406.9M  2.620 (paper: perplexity 13.73)
    gates-forget_and_bias   408.1M  2.606 (paper: perplexity 13.55)
    gates-both              409.3M  2.597 (paper: perplexity 13.43)
    gates-sigmoid           409.3M  not in the paper: both gates, no exponential one

The block around the matrix memory, table 8:

    memory-post_up          430.4M  2.632 (paper: perplexity 13.90)
    memory-no_conv          408.8M  2.735 (paper: perplexity 15.41)
    memory-conv             409.3M  2.597 (paper: perplexity 13.43)

Tokens: 28,170 steps x 256 x 2048 = 14.77B, one epoch; peak rate 0.001. The default variant is
gates-both, the model of the last row of each table.

    python train.py --config=configs/ablations.py:lstm_block --workdir=DIR
"""

import math

from xlstm_jax.errors import UserError

from . import base

DIM = 1024
SLSTM_POSITIONS = (3, 5, 7, 40, 42, 44)

# (what decides the input gate, the forget gate, the forget gate's first bias)
GATES = {
    "none_inf": ("fixed", "fixed", math.inf),
    "none": ("fixed", "fixed", None),
    "forget": ("fixed", "text", None),
    "input": ("text", "fixed", None),
    "forget_bias": ("fixed", "bias", None),
    "both_biases": ("bias", "bias", None),
    "forget_and_bias": ("bias", "text", None),
    "both": ("text", "text", None),
}


def get_config(variant: str = "gates-both"):
    config = base.slimpajama_run("15b", 1e-3)
    config.model.dim, config.model.num_blocks = DIM, 48
    if variant not in VARIANTS:
        raise UserError(
            f"config variant {variant!r} does not exist; the variants of this file are "
            f"{', '.join(VARIANTS)}"
        )
    VARIANTS[variant](config.model)
    return config


def lstm(model):
    model.dim, model.num_blocks, model.blocks = 1536, 24, "lstm"
    model.norm, model.residual = "none", False


def lstm_residual(model):
    model.blocks = "lstm"


def lstm_block(model):
    model.num_blocks, model.blocks = 24, "lstm+mlp"
    plain_layer(model, "gelu")


def plain_layer(model, activation):
    """A feed-forward layer of 4 D without a gate."""
    model.mlp.activation, model.mlp.gated, model.mlp.factor = activation, False, 4.0


def xlstm_0_1(model):
    model.num_blocks, model.blocks = 24, "slstm+mlp"
    model.slstm.dense = True
    model.slstm.recurrent_gradient_clip = 10.0  # appendix A.2
    model.mlp.factor, model.mlp.hidden = None, 2688


def xlstm_7_1(model):
    model.blocks = base.with_slstm(48, SLSTM_POSITIONS)
    model.slstm.recurrent_gradient_clip = 10.0


def gates(name):
    of_input, of_forget, forget_bias = GATES[name]

    def change(model):
        model.mlstm.input_gate_from, model.mlstm.forget_gate_from = of_input, of_forget
        if of_input == "fixed":
            model.mlstm.input_gate_bias_std = 0.0
        if forget_bias is not None:
            model.mlstm.forget_gate_bias = (forget_bias, forget_bias)

    return change


def sigmoid_gates(model):
    model.mlstm.input_gate = "sigmoid"


def post_up(model):
    """The matrix memory without an up-projection around it, and ReLU^2 of 4 D after it."""
    model.num_blocks, model.blocks = 24, "mlstm_7b+mlp"
    model.mlstm_7b.num_heads, model.mlstm_7b.qk_factor = 4, 1.0
    model.mlstm_7b.gate_soft_cap = None
    model.mlstm_7b.input_gate_bias, model.mlstm_7b.input_gate_bias_std = 0.0, 0.1
    model.mlstm_7b.norm_eps = 1e-5
    plain_layer(model, "relu2")


def no_conv(model):
    model.mlstm.conv_width = 0


def conv(model):
    pass


VARIANTS = {
    "lstm": lstm,
    "lstm_residual": lstm_residual,
    "lstm_block": lstm_block,
    "xlstm_0_1": xlstm_0_1,
    "xlstm_7_1": xlstm_7_1,
    **{f"gates-{name}": gates(name) for name in GATES},
    "gates-sigmoid": sigmoid_gates,
    "memory-post_up": post_up,
    "memory-no_conv": no_conv,
    "memory-conv": conv,
}
