"""Checkpoints in and out.

    python -m xlstm_jax.interop import --source=HF_DIR --output=DIR [--tokenizer=FILE]
    python -m xlstm_jax.interop export --source=RUN --output=DIR [--format=huggingface]
    [--weight_mode=fused] [--dtype=bfloat16]

Sources of an import: a folder of transformers' xLSTMForCausalLM or of PyPI xlstm, or a name on the
Hugging Face hub (NX-AI/xLSTM-7b).
"""

import sys
from collections.abc import Sequence

from xlstm_jax import command_line
from xlstm_jax.errors import UserError
from xlstm_jax.installation import module, next_lines, program, shell_line
from xlstm_jax.interop.convert import DTYPES, export_checkpoint, import_checkpoint
from xlstm_jax.interop.formats import FORMATS
from xlstm_jax.progress import counted

FLAGS = {
    "source": "folder of a checkpoint; for an import also a name on the hub",
    "output": "folder to be made",
}
IMPORT_FLAGS = {
    "tokenizer": "a tokenizer.json, or 'byte'; by default the one in the source's folder",
}
EXPORT_FLAGS = {
    "format": f"{', '.join(FORMATS)}; by default that of the model's blocks",
    "weight_mode": "single (the default) or fused, of huggingface",
    "dtype": f"{', '.join(DTYPES)}; float32 by default, the only one that loses nothing",
    "step": "of the run's checkpoint; the newest one by default",
}


def main(argv: Sequence[str]) -> int:
    """Returns the process's exit status."""

    def command() -> None:
        action = argv[1] if len(argv) > 1 else ""
        if action not in ("import", "export"):
            if {"--help", "-h"} & set(argv):
                print(__doc__)
                raise SystemExit(0)
            what = f"{action!r} is no action" if action else "no action is given"
            raise UserError(
                f"{what}; write `{module('interop')} import` or `export` (--help shows examples)"
            )
        flags = command_line.parse(
            [argv[0], *argv[2:]],
            __doc__,
            FLAGS | (EXPORT_FLAGS if action == "export" else IMPORT_FLAGS),
        )
        source, output = (
            command_line.text(flags, "source", "DIR"),
            command_line.text(flags, "output", "DIR"),
        )
        if action == "import":
            config = import_checkpoint(source, output, flags["tokenizer"].value)
            model, window = config.model, config.eval.context_length or config.data.context_length
            print(
                *command_line.wrapped(
                    f"{output}: {counted(model.num_blocks, 'block')} ({model.blocks}) of dimension "
                    f"{model.dim}, trained on contexts of "
                    f"{counted(config.data.context_length, 'token')}, evaluated on {window:,}"
                ),
                *next_lines(
                    shell_line(module("generation"), checkpoint=output, prompt="def "),
                    shell_line(program("eval"), workdir=output, data="FILE"),
                ),
                sep="\n",
            )
            return
        chosen = {
            name: flags[name].value
            for name in ("weight_mode", "dtype")
            if flags[name].value is not None
        }
        format = export_checkpoint(
            source,
            output,
            format=flags["format"].value,
            step=command_line.number(flags, "step"),
            **chosen,
        )
        # as others find it: what was written is read again
        print(
            f"{output}: {format}",
            *next_lines(
                shell_line(module("generation"), checkpoint=output, prompt="def "),
                shell_line(program("eval"), checkpoint=output, data="FILE"),
            ),
            sep="\n",
        )

    return command_line.run(command)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
