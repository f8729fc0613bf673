"""The section `data`: where samples come from and how large they are."""

import dataclasses

from xlstm_jax.settings import setting


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the tokens come from and how they are cut into samples."""

    path: str = setting(
        "stdlib",
        '"stdlib" (the embedded corpus), a text file, a folder of text, a folder of prepared token '
        'shards, "synthetic" (random tokens), or a mixture by weight: "a:0.7,b:0.3"',
        place=True,
    )
    max_tokens: int | None = setting(None, "train on the first tokens only", at_least=1)
    validation_path: str | None = setting(
        None,
        "of the held-out tokens; unset: a prepared path's own, else every holdout_every-th file",
        place=True,
    )
    validation_sets: str | None = setting(
        None,
        'more held-out data, "name=path,name=path", logged as validation/name',
        place=True,
    )
    holdout_every: int = setting(20, "of so many files one is held out", at_least=2)
    tokenizer: str = setting(
        "byte", 'or a file of the tokenizers library ("tokenizer.json")', place=True
    )
    context_length: int = setting(256, "T, tokens of a sample", at_least=1)
    batch_size: int = setting(8, "B, samples per optimizer step, over all devices", at_least=1)
    reset_at_document: bool = setting(False, "drop all states at document borders")
    # a seed has 32 bits: 4294967296 would draw what 0 draws
    seed: int = setting(0, "of the order of samples", at_least=0, at_most=2**32 - 1)
    workers: int = setting(
        0, "reader processes; 0 reads in the main process", at_least=0, may_change=True
    )
