"""Training and decoding of the models that the paper compares with, beside transformers' PyTorch
form of the same model with the same weights; and how every mixer grows with the text.

    make benchmark-baselines        (in the environment of `make parity`)
    python -m benchmarks.baselines [--only=mamba,llama] [--repetitions=3] [--slopes=no]
        [--output=benchmarks/results/baselines.json]

A training step is forward, backward and AdamW, batch 2, T 256; ours runs over one JAX device and
over one for each core, as train.py can. The batch is small because transformers' Mamba and RWKV-4
go through the text token by token where their CUDA kernels are not there; Mamba's backward pass
then took tens of seconds for these 512 tokens on a busy machine. That is the form that a CPU gets,
and what our ratios of these two models are against. Decoding is one text, greedy, without its
prompt. Logits, losses before and after an update, and greedy tokens are compared before anything is
timed; then the sides take turns, and medians are reported.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import tempfile
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from benchmarks import slopes
from benchmarks.cpu_vs_pytorch import CORES, OURS, jax_step, torch_step
from benchmarks.inference import DECODED, Ours, Theirs, alternate, seconds
from benchmarks.originals import randomize
from xlstm_jax.generation import session
from xlstm_jax.interop import folders, gpt2, llama, mamba, rwkv4
from xlstm_jax.interop.convert import import_params
from xlstm_jax.models import ModelConfig, build_model

BATCH, CONTEXT, PROMPT, COMPARED = 2, 256, 16, 16
SIZES = {"vocab_size": 320, "dim": 256}
NORMS = {"norm_bias": True}
BIASED = {"gated": False, "bias": True, "activation": "gelu_tanh", "factor": 4.0}
# by name: the model, and the fields of transformers' configuration
MODELS = {
    "Mamba": (
        ModelConfig(blocks="mamba", norm="rms", num_blocks=4, **SIZES),
        mamba.export_config,
    ),
    "RWKV-4": (
        ModelConfig(
            blocks="rwkv4+rwkv4_channel", embedding_norm=True, num_blocks=4, **NORMS, **SIZES
        ),
        lambda config: rwkv4.export_config(config, 2 * CONTEXT),
    ),
    "Llama": (
        ModelConfig(
            blocks="attention+mlp",
            norm="rms",
            num_blocks=4,
            mixers={"attention": {"num_heads": 4}, "mlp": {"activation": "silu", "factor": 8 / 3}},
            **SIZES,
        ),
        lambda config: llama.export_config(config, 2 * CONTEXT),
    ),
    "GPT-2": (
        ModelConfig(
            blocks="attention+mlp",
            num_blocks=4,
            positions="learned",
            max_positions=2 * CONTEXT,
            tie_embeddings=True,
            mixers={
                "attention": {"num_heads": 4, "theta": None, "bias": True},
                "mlp": BIASED,
            },
            **NORMS,
            **SIZES,
        ),
        gpt2.export_config,
    ),
}
RESULT = pathlib.Path(__file__).parent / "results" / "baselines.json"


class Decoder(Ours):
    """Our side, with room for the tokens that attention remembers."""

    def read(self, tokens: np.ndarray) -> session.Session:
        room = tokens.shape[1] + DECODED
        found = session.read(self.model, self.params, tokens.tolist(), cache_length=room)
        return jax.block_until_ready(found)


class Logits(torch.nn.Module):
    """A model of transformers as a function of tokens, without the memory that decoding keeps."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model(tokens, use_cache=False).logits


def both_sides(config: ModelConfig, export: Any) -> tuple[Any, Any, torch.nn.Module]:
    """(our model, its variables, transformers' model) with the same random weights."""
    torch.manual_seed(0)
    fields = export(config) | {"bos_token_id": 0, "eos_token_id": 0}
    made = transformers.AutoConfig.for_model(**fields)
    theirs = transformers.AutoModelForCausalLM.from_config(made).eval()
    randomize(theirs, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        params = jax.tree.map(jnp.asarray, import_params(folders.open_source(folder)))
    return build_model(config), {"params": params}, theirs


def compare(
    name: str,
    config: ModelConfig,
    export: Any,
    repetitions: int,
    *,
    context: int = CONTEXT,
    decoded: int = DECODED,
    devices: dict[str, int] = OURS,
) -> list[dict[str, Any]]:
    """The rows of a model; raises AssertionError where the sides do not compute the same.

    Args:
        devices: by the name of a side of ours, over how many JAX devices it trains.
        decoded: tokens of the text that is written, at most `DECODED`.
    """
    model, variables, theirs = both_sides(config, export)
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, config.vocab_size, (BATCH, context + 1))
    tokens, targets = tokens[:, :-1], tokens[:, 1:]

    decoder, writer = Decoder(model, variables["params"]), Theirs(theirs)
    difference = np.abs(decoder.logits(tokens[:2]) - writer.logits(tokens[:2])).max()
    np.testing.assert_allclose(difference, 0, atol=1e-3, err_msg=f"{name}: logits")
    prompt = tokens[:1, :PROMPT]
    start, count = decoder.read(prompt), min(COMPARED, decoded)
    np.testing.assert_array_equal(
        decoder.write(start, count)[1], writer.write(prompt, count), err_msg=f"{name}: tokens"
    )
    decoding = alternate(
        {
            # our prompt is read, and the first token known
            "ours": lambda: seconds(lambda: decoder.write(start, decoded - 1)),
            "transformers": lambda: (
                seconds(lambda: writer.write(prompt, decoded))
                - seconds(lambda: writer.write(prompt, 1))
            ),
        },
        repetitions,
    )

    runs = {
        side: jax_step(model, variables, tokens, targets, number)
        for side, number in devices.items()
    }
    runs["transformers"] = torch_step(Logits(theirs), tokens, targets)
    # the second after one update: gradients and AdamW too (theirs decays all parameters alike)
    for tolerance in (1e-4, 1e-3):
        losses = {side: run() for side, run in runs.items()}
        for side in devices:
            np.testing.assert_allclose(
                losses[side], losses["transformers"], rtol=tolerance, err_msg=f"{name}: {side}"
            )
    training = alternate(
        {side: lambda run=run: seconds(run) for side, run in runs.items()}, repetitions
    )
    jax.clear_caches()
    return [
        _row(name, "training", BATCH * context, training, float(difference)),
        _row(name, "decoding", decoded - 1, decoding, float(difference)),
    ]


def _row(
    name: str, what: str, tokens: int, medians: dict[str, float], difference: float
) -> dict[str, Any]:
    speed = {side: tokens / value for side, value in medians.items()}
    ours = max(value for side, value in speed.items() if side != "transformers")
    return {
        "model": name,
        "what": what,
        "tokens_per_second": speed,
        "ratio": ours / speed["transformers"],
        "largest_difference_of_logits": difference,
    }


HEADING = "| | ours | on so many devices | transformers | ratio |\n|---|---:|---|---:|---:|"


def line(row: dict[str, Any]) -> str:
    """A row of the table; of our sides the faster one."""
    speed = dict(row["tokens_per_second"])
    theirs = speed.pop("transformers")
    side = max(speed, key=speed.get)
    what = f"{row['model']}, {row['what']}, tokens/s"
    shown = "" if side == "ours" else side
    return f"| {what} | {speed[side]:,.0f} | {shown} | {theirs:,.0f} | {row['ratio']:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(MODELS))
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--slopes", choices=("yes", "no"), default="yes")
    parser.add_argument("--output", type=pathlib.Path, default=RESULT)
    arguments = parser.parse_args()
    if unknown := set(arguments.only) - MODELS.keys():
        parser.error(f"--only has {', '.join(sorted(unknown))}; there are {', '.join(MODELS)}")
    torch.set_num_threads(CORES)
    jax.config.update("jax_num_cpu_devices", CORES)
    print(f"{CORES} cores each, D 256, batch {BATCH}, T {CONTEXT}, float32\n\n{HEADING}")
    rows = []
    for name in arguments.only:
        found = compare(name, *MODELS[name], arguments.repetitions)
        rows += found
        print(*map(line, found), sep="\n", flush=True)
    grown = []
    if arguments.slopes == "yes":
        print(f"\na step of two blocks, D {slopes.SIZES['dim']}, batch 1\n")
        grown = slopes.table(slopes.names(), slopes.LENGTHS, arguments.repetitions)
    machine = {
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "date": datetime.date.today().isoformat(),
        "jax": jax.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(
        json.dumps({"machine": machine, "rows": rows, "slopes": grown}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
