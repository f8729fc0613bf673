"""Small tokenizers that mark a word by the space before it, as those of sentencepiece and Llama
do.
"""

import pathlib

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from xlstm_jax.data.tokenizer import END_OF_TEXT, FileTokenizer, load_tokenizer

WORDS = ("▁import", "▁os", "▁more", "▁naïve", "</", "s>", "▁")
LETTERS = "abcdefghijklmnopqrstuvwxyz .,<>/\n"
KINDS = ("metaspace", "llama")


def write(path: pathlib.Path, kind: str = "metaspace") -> None:
    """A tokenizer.json: words, letters, and the 256 bytes for all other characters.

    The kinds give the same ids. "metaspace" puts the space in front when it cuts words, "llama"
    before, when it normalizes.
    """
    pieces = [(END_OF_TEXT, 0.0)]
    pieces += [(word, -1.0) for word in WORDS] + [(letter, -5.0) for letter in LETTERS]
    pieces += [(f"<0x{byte:02X}>", -9.0) for byte in range(256)]
    tokenizer = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    if kind == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        spaces = [decoders.Metaspace()]
    else:
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        spaces = [decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)]
    first, *rest = spaces
    tokenizer.decoder = decoders.Sequence([first, decoders.ByteFallback(), decoders.Fuse(), *rest])
    tokenizer.add_special_tokens([END_OF_TEXT])
    tokenizer.save(str(path))


def load(folder: pathlib.Path, kind: str = "metaspace") -> FileTokenizer:
    """The same, opened."""
    write(folder / "tokenizer.json", kind)
    return load_tokenizer(str(folder / "tokenizer.json"))
