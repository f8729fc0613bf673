"""What each table and figure of the paper is here: its configuration files, and which rows of ours
stand beside it.
"""

import pathlib
from collections.abc import Mapping
from typing import NamedTuple

from xlstm_jax.analysis.paper.values import TABLES


class Entry(NamedTuple):
    """A row of one of the paper's tables of trained language models.

    Attributes:
        label: as it is called in paper_values.json.
        config: FILE:VARIANT below configs/, the run as the paper describes it.
        flags: of train.py, where this table's run differs from the file's.
        like: a configuration that takes as long, where speeds are known of that one.
    """

    label: str
    config: str
    flags: tuple[str, ...] = ()
    like: str | None = None

    @property
    def trained(self) -> str:
        """The row of configs/comparison.py that is this one at a small size."""
        file, _, variant = self.config.partition(":")
        stem = pathlib.PurePath(file).stem
        if stem == "ablations":
            return variant.replace("-", "_")
        if stem.startswith("xlstm_"):
            return f"xlstm_{variant.partition('-')[0]}"
        return stem

    @property
    def words(self) -> str:
        """The label, written out."""
        return WORDS.get(self.label, self.label)

    @property
    def command(self) -> str:
        """What a cluster runs."""
        return " ".join(
            ["python train.py", f"--config=configs/{self.config}", *self.flags, "--workdir=DIR"]
        )


# the paper's name of a model -> its file, for models that are no xLSTM
FILES = {
    "GPT-3": "gpt3.py",
    "Llama": "llama.py",
    "H3": "h3.py",
    "Mamba": "mamba.py",
    "Hyena": "hyena.py",
    "RWKV-4": "rwkv4.py",
    "RWKV-5": "rwkv5.py",
    "RWKV-6": "rwkv6.py",
    "RetNet": "retnet.py",
    "HGRN": "hgrn.py",
    "GLA": "gla.py",
    "HGRN2": "hgrn2.py",
}
KINDS = {"xLSTM[1:0]": "1_0", "xLSTM[7:1]": "7_1"}
# Table 1 has one peak rate for every model; these files have those of table 7.
RATE_OF_TABLE_1 = ("--config.optimizer.learning_rate=0.001",)
OTHER_RATES = ("Llama", "Mamba")
# the rows of table 2 and 8, written out
WORDS = {
    "LSTM vanilla 24x1536": "LSTM, 24 layers of 1536",
    "+ resnet backbone": "+ residual connections",
    "+ up-projection backbone": "+ up-projection",
    "xLSTM[0:1] (+ exponential gating)": "+ exponential gates: xLSTM[0:1]",
    "xLSTM[7:1] (+ matrix memory)": "+ matrix memory: xLSTM[7:1]",
    "none, f bias +inf": "no gates, nothing forgotten",
    "none, f bias [3,6]": "no gates, fixed forget bias",
    "f bias learnable": "learned forget bias",
    "f+i bias learnable": "learned forget and input bias",
    "forget gate + learnable i bias": "forget gate, learned input bias",
    "forget + input gate": "forget and input gate",
    "post-up ReLU^2, 24 blocks": "up-projection behind it",
    "pre-up no conv, 48": "before it, no convolution",
    "pre-up with conv, 48": "before it, convolution",
}
ABLATED = "xlstm_350m.py:1_0-15b"  # is as fast as the variants of its gates


def run_of(model: str, size: str, tokens: str) -> str:
    """The configuration of a model of tables 1, 3 and 7.

    Args:
        size: as 350M.
        tokens: 15b or 300b.
    """
    if model in KINDS:
        return f"xlstm_{size.lower()}.py:{KINDS[model]}-{tokens}"
    return f"{FILES[model]}:{size.lower()}-{tokens}"


# table of paper_values.json -> its rows
TRAINED: dict[str, tuple[Entry, ...]] = {
    "table1_15B": tuple(
        Entry(name, run_of(name, "350M", "15b"), RATE_OF_TABLE_1 if name in OTHER_RATES else ())
        for name in TABLES["table1_15B"]["rows"]
    ),
    "table2_components": (
        Entry("LSTM vanilla 24x1536", "ablations.py:lstm"),
        Entry("+ resnet backbone", "ablations.py:lstm_residual"),
        Entry("+ up-projection backbone", "ablations.py:lstm_block"),
        Entry("xLSTM[0:1] (+ exponential gating)", "ablations.py:xlstm_0_1"),
        Entry("xLSTM[7:1] (+ matrix memory)", "xlstm_350m.py:7_1-15b"),
    ),
    "table2_gating": (
        Entry("none, f bias +inf", "ablations.py:gates-none_inf", like=ABLATED),
        Entry("none, f bias [3,6]", "ablations.py:gates-none", like=ABLATED),
        Entry("forget gate", "ablations.py:gates-forget", like=ABLATED),
        Entry("input gate", "ablations.py:gates-input", like=ABLATED),
        Entry("f bias learnable", "ablations.py:gates-forget_bias", like=ABLATED),
        Entry("f+i bias learnable", "ablations.py:gates-both_biases", like=ABLATED),
        Entry("forget gate + learnable i bias", "ablations.py:gates-forget_and_bias", like=ABLATED),
        Entry("forget + input gate", "xlstm_350m.py:1_0-15b"),
    ),
    "table8_matrix_memory": (
        Entry("post-up ReLU^2, 24 blocks", "ablations.py:memory-post_up"),
        Entry("pre-up no conv, 48", "ablations.py:memory-no_conv", like=ABLATED),
        Entry("pre-up with conv, 48", "xlstm_350m.py:1_0-15b"),
    ),
}
# the runs behind tables 3, 4 and 9 and figures 7 and 8: size -> rows
LONG_RUNS: dict[str, tuple[Entry, ...]] = {
    size: tuple(Entry(model, run_of(model, size, "300b")) for model in rows)
    for size, rows in TABLES["table3_300B"]["rows"].items()
}
# figure 6: 15B tokens at every size
SHORT_RUNS = tuple(
    Entry(f"{model} {size}", run_of(model, size, "15b"))
    for size in ("125M", "350M", "760M", "1.3B", "2.7B")
    for model in ("xLSTM[1:0]", "xLSTM[7:1]", "Llama", "Mamba", "RWKV-4")
)


class Small(NamedTuple):
    """An experiment of the paper with small models.

    Attributes:
        file: below configs/.
        what: as the paper numbers it.
        title: of the section.
        tables: of paper_values.json; none where the paper prints no numbers.
        of: models of the file behind a row of the paper, where they are not called like the row;
            none for what is no model.
    """

    file: str
    what: str
    title: str
    tables: tuple[str, ...] = ()
    of: Mapping[str, tuple[str, ...]] = {}

    @property
    def name(self) -> str:
        """As `python -m xlstm_jax.experiments` and its rows call it."""
        return pathlib.PurePath(self.file).stem

    @property
    def command(self) -> str:
        """The whole grid at the paper's sizes."""
        return f"python -m xlstm_jax.experiments {self.name} --preset=paper"


FORMAL = Small(
    "formal.py",
    "figures 4, 12",
    "Figures 4 and 12: formal languages, scaled accuracy",
    ("fig12_formal_scaled_acc", "fig4_formal_scaled_acc"),
)
ARENA = Small(
    "lra.py",
    "table 6",
    "Table 6: Long Range Arena, accuracy",
    ("table6_lra_test_acc",),
    # the paper's xLSTM is the better of two
    {"xLSTM": ("xLSTM[1:0]", "xLSTM[0:1]"), "random": ()},
)
SEARCH = Small("nns.py", "figure 2, left", "Nearest neighbour search, mean squared error")
RECALL = Small("mqar.py", "figures 5, 13 to 16", "Multi-query associative recall, accuracy")
GRIDS = (*(small.file for small in (FORMAL, ARENA, SEARCH, RECALL)), "rare_tokens.py")


class Unprinted(NamedTuple):
    """A figure of the paper without numbers in its text.

    Attributes:
        command: what makes ours; "" where it is open.
        ours: where it is, or what is missing.
        grid: file below configs/ of an experiment; "" where it is none.
    """

    figure: str
    what: str
    command: str
    ours: str
    grid: str = ""


UNPRINTED = (
    Unprinted(
        "figure 2, left", "nearest neighbour search, mean squared error",
        "python -m xlstm_jax.experiments nns --preset=paper", "[experiments](experiments.md)",
        "nns.py",
    ),
    Unprinted(
        "figure 2, right", "perplexity of rare tokens of WikiText-103",
        "python -m xlstm_jax.experiments rare_tokens --preset=paper",
        "[experiments](experiments.md)", "rare_tokens.py",
    ),
    Unprinted(
        "figures 5, 13 to 16", "multi-query associative recall, accuracy over dimensions",
        "python -m xlstm_jax.experiments mqar --preset=paper", "[experiments](experiments.md)",
        "mqar.py",
    ),
    Unprinted(
        "figure 6", "perplexity against parameters, 15B tokens, five sizes",
        "python train.py --config=configs/xlstm_2.7b.py:1_0-15b --workdir=DIR",
        "every model and size of table 7 has such a variant; a series of our own, planned by FLOPs:"
        " [scaling laws](scaling_laws.md)",
    ),
    Unprinted(
        "figure 9", "time to generate, throughput against batch size",
        "python eval.py --workdir=DIR --suite=generation",
        "times of ours at small sizes: below, and [performance](performance.md)",
    ),
    Unprinted(
        "table 10", "PALOMA's 571 domains one by one", "",
        "open: the 571 rows are not among our copies of the paper's numbers; `eval.py "
        "--suite=paloma` writes each domain's perplexity to results.json",
    ),
)  # fmt: skip
