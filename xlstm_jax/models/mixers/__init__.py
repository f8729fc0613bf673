"""The table of mixers. `register` adds one, also from a notebook.

mlstm      matrix memory in the paper's block, with its up-projection (2405.04517, figure 11)
mlstm_7b   matrix memory in the block of xLSTM 7B (2503.13427, figure 8)
slstm      scalar memory with memory mixing (2405.04517, figure 10)
attention  causal softmax attention, rotary positions, grouped heads
mlp        feed-forward layer, gated or not
mamba      selective state-space model S6 (2312.00752)
rwkv4      averages that decay: time mix of RWKV-4 (2305.13048)
rwkv4_channel
           its channel mix: a feed-forward layer that sees the token before
rwkv5      matrix state with a decay per channel: time mix of RWKV-5 (2404.05892)
rwkv6      the same with decays and mixtures that the text decides: time mix of RWKV-6
retnet     retention, a fixed decay per head (2307.08621)
gla        gated linear attention (2312.06635)
hgrn       a gated recurrence per channel, later layers forget more slowly (2311.04823)
hgrn2      matrix state that writes what it forgets, bounded by layer (2404.07904)
h3         two linear state-space models with products around them (2212.14052)
hyena      long convolutions with products between them (2302.10866); its memory grows
lstm       the LSTM with memory mixing over all channels: baseline of the ablations
"""

import re

from xlstm_jax.errors import UserError
from xlstm_jax.models.mixer import Mixer
from xlstm_jax.models.mixers import (
    attention,
    gla,
    h3,
    hgrn,
    hgrn2,
    hyena,
    lstm,
    mamba,
    mlp,
    mlstm,
    mlstm_7b,
    retnet,
    rwkv4,
    rwkv4_channel,
    rwkv5,
    rwkv6,
    slstm,
)

_TABLE: dict[str, Mixer] = {}

DEFAULT_BLOCKS = "mlstm"


def register(name: str, mixer: Mixer) -> None:
    """Makes a mixer known: as a name in `model.blocks`, its settings as `model.NAME.key`.

    Raises:
        ValueError: the name has other characters than a-z, 0-9 and _.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"the mixer's name is {name!r}; use a-z, 0-9 and _, a letter first")
    _TABLE[name] = mixer


def find(name: str) -> Mixer:
    """The mixer of a name; raises `UserError` where there is none."""
    if name not in _TABLE:
        raise UserError(
            f"config key model.blocks names the mixer {name!r}; there are {', '.join(names())}"
        )
    return _TABLE[name]


def names() -> tuple[str, ...]:
    """All names, in the order of registration."""
    return tuple(_TABLE)


def countings() -> tuple[str, ...]:
    """The names of all mixers' ways to count FLOPs (`Mixer.countings`)."""
    return tuple(dict.fromkeys(name for mixer in _TABLE.values() for name in mixer.countings))


register("mlstm", mlstm.MIXER)
register("mlstm_7b", mlstm_7b.MIXER)
register("slstm", slstm.MIXER)
register("attention", attention.MIXER)
register("mlp", mlp.MIXER)
register("mamba", mamba.MIXER)
register("rwkv4", rwkv4.MIXER)
register("rwkv4_channel", rwkv4_channel.MIXER)
register("rwkv5", rwkv5.MIXER)
register("rwkv6", rwkv6.MIXER)
register("retnet", retnet.MIXER)
register("gla", gla.MIXER)
register("hgrn", hgrn.MIXER)
register("hgrn2", hgrn2.MIXER)
register("h3", h3.MIXER)
register("hyena", hyena.MIXER)
register("lstm", lstm.MIXER)
