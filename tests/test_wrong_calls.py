"""Wrong calls of all seven commands. Each ends with status 2 and one line on stderr that names what
was wrong and what would be right: no traceback, and nothing of the user's is touched.
"""

import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

import eval as eval_command
import train as train_command
from xlstm_jax.config import load
from xlstm_jax.data import inspect as inspect_command
from xlstm_jax.data import prepare as prepare_command
from xlstm_jax.evaluation import command as evaluation_command
from xlstm_jax.experiments import __main__ as experiments_command
from xlstm_jax.generation import __main__ as generation_command
from xlstm_jax.interop import __main__ as interop_command
from xlstm_jax.models import build_model
from xlstm_jax.runs.checkpoints import write_params
from xlstm_jax.runs.params import language_model_params

ROOT = pathlib.Path(__file__).parents[1]
TINY = ROOT / "tests/training/tiny_run.py"
COMMANDS = {
    "train": train_command.main,
    "eval": eval_command.main,
    "generation": generation_command.main,
    "prepare": prepare_command.main,
    "inspect": inspect_command.main,
    "interop": interop_command.main,
    "experiments": experiments_command.main,
}
# What a command is given before a row's own arguments; of a flag that stands twice the last counts.
RIGHT = {
    "train": (f"--config={TINY}", "--config.data.path={corpus}", "--workdir={new}"),
    "eval": ("--workdir={run}",),
    "generation": ("--checkpoint={run}", "--max-new-tokens=1"),
    "prepare": (
        "--source={corpus}", "--tokenizer=byte", "--output={new}", "--split=train", "--workers=1"
    ),
    "inspect": ("{prepared}",),
    "experiments": ("formal", "--workdir={new}"),
    "import": ("import", "--source={run}", "--output={new}"),
    "export": ("export", "--source={run}", "--output={new}"),
}  # fmt: skip
PROGRESS = r"\[\d\d:\d\d.*\]"  # a line that tqdm draws
BARE = "bare: "  # before a command's name: without its right arguments

# command | arguments | what the line has to say
TABLE = """
train | --config.model.dimm=8 | unknown config key model.dimm; did you mean model.dim
train | --config.model=8 | unknown config key model; did you mean
train | --config.model.dim | --config.model.dim=value
train | --config.model.dim=wide | 'wide'; it must be of type int
train | --config.model.dim=1e400 | model.dim is '1e400'; it must be of type int
train | --config.model.dim=none | model.dim is 'none'; it must be of type int
train | --config.optimizer.clip_norm=much | 'much'; it must be of type float, or none to unset it
train | --config.optimizer.learning_rate=inf | must be a finite number
train | --config.optimizer.clip_norm=nan | must be a finite number
train | --config.log.tensorboard=maybe | log.tensorboard is 'maybe'; it must be of type bool
train | --config.model.mlstm.forget_gate_bias=one | numbers with commas between
train | --config.model.mlstm.num_head=2 | unknown config key model.mlstm.num_head; did you mean
train | --config.model.mlp.factor=none | model.mlp.hidden None and model.mlp.factor None: give one
train | --config.model.attention.num_heads=2 | num_heads is 2, but no block of this model reads it
train | --config.task.name=formel | task.name is 'formel'; it must be one of language_modelling
train | --config.task.formal.held_out_samples=9 | but task.name is 'language_modelling'
train | --config.task.name=formal --config.data.tokenizer={file} | the task 'formal' does not read
train | --config.data.path=None | data.path is 'None'; give a value; it can't be unset
train | --config.data.path= | data.path is ''; give a value
train | --config.checkpoint.init_from= | give a value, or none to unset it
train | --config.data.seed=-1 | data.seed is -1; it must be at least 0
train | --config.train.seed=4294967296 | train.seed is 4294967296; it must be at most 4294967295
train | --config.train.steps=2147483648 | train.steps is 2147483648; it must be at most
train | --config.data.reset_at_document --config.eval.max_tokens=1 | eval.max_tokens is 1
train | --config.model.dtype=float64 | JAX_ENABLE_X64=1
train | --config.model.blocks=²*mlstm | of which '²*mlstm' is no block
train | --config.model.blocks=mlstm++mlp | of which 'mlstm++mlp' is no block
train | --config.model.blocks=mlstn | names the mixer 'mlstn'; there are mlstm,
train | --config.model.dim=15 | model.dim is 15, not divisible by model.slstm.num_heads 2
train | --config={file} | is no Python file
train | --config={corpus} | is a folder
train | --config=a:b/my.py | 'a:b/my.py' does not exist
train | --config=configs/quickstart.py:big | takes no variant
train | --config=configs/xlstm_1.3b.py:9_1 | variant '9_1' does not exist
train | --config={empty_config} | has no function get_config
train | --config={odd_config} | get_config returns NoneType
train | --config={broken_config} | line 2: SyntaxError
train | --config={failing_config} | line 2: ZeroDivisionError
train | --config={variant_config} | needs a variant
bare: train | --workdir={new} | --config is missing
bare: train | --config=configs/quickstart.py | --workdir is missing
train | --workdir=gs://bucket/run | --workdir is 'gs://bucket/run', an address
train | --workdir=/proc/nope/run | --workdir '/proc/nope/run' can't be written to
train | --workdir={file} | is a file; give a folder
train | --workdir={file}/run | {file}' is a file; give a folder
train | --workdir={new}/\udce9 | is not UTF-8
train | --config.checkpoint.init_from={new}/\udce9 | is not UTF-8
train | --wrkdir=x | Did you mean: workdir
train | fast | argument 'fast' is not understood
train | --profile=12:10 | --profile is '12:10'
train | --profile=²:3 | --profile is '²:3'
train | --aot=abacus:2x2 | abacus
train | --aot-details={new} | --aot-details belongs to --aot, which is missing
train | --aot=v5e:2x2 --aot-details={file} | is there already
train | --aot=v5e:2x2 --aot-details={file}/kernels.json | is a file; give a folder
train | --aot=v5e:2x2 --aot-details=gs://bucket/kernels.json | an address
train | --config.data.path=/no/such | data path '/no/such' does not exist
train | --config.data.path=gs://bucket/text | config key data.path is 'gs://bucket/text', an address
train | --config.data.path={corpus}:1,s3://b:1 | an address
train | --config.data.path={corpus}:0,{corpus}:1 | each part must be "path:weight"
train | --config.data.validation_sets=x | it must be "name=path,name=path"
train | --config.data.tokenizer=/no/such.json | data.tokenizer '/no/such.json' does not exist
train | --config.data.tokenizer={file} | is no file of the `tokenizers` library
train | --config.data.context_length=100000 | less than one sample
train | --config.checkpoint.init_from=/no/such | checkpoint.init_from is '/no/such'
train | --config.checkpoint.init_from=gs://bucket/run | an address
train | --config.data.tokenizer=gs://bucket/tokenizer.json | an address
train | --config.data.validation_sets=code=gs://bucket/code | an address
train | --config=gs://bucket/config.py | config file 'gs://bucket/config.py' does not exist
train | --config.checkpoint.init_from={corpus} | holds no checkpoints
bare: eval | | --workdir is missing
eval | --workdir={corpus} | holds no config.json
eval | --workdir=gs://bucket/run | --workdir is 'gs://bucket/run', an address
eval | --checkpoint=https://huggingface.co/NX-AI/xLSTM-7b | an address
eval | --step=last | --step is 'last'; it must be a whole number
eval | --step=7 | there is no checkpoint of step 7
eval | --suite=perplexiti | --suite has 'perplexiti'
eval | --suite=perplexity,paloma | --paloma is missing
eval | --suite=paloma --paloma=/no/such | /no/such
eval | --split=test | there is no split 'test'
eval | --data=/no/such | '/no/such' does not exist
eval | --max_tokens=-1 | --max_tokens is '-1'; it must be a whole number
eval | --max_tokens=0 | --max_tokens is 0; it must be at least 1
eval | --batch_size=0 | --batch_size is 0; it must be at least 1
eval | --suite=extrapolation --contexts=0 | --contexts is '0'
eval | --suite=extrapolation --contexts=1² | --contexts is '1²'
eval | --output={file} | {file}
eval | --output=/proc/nope/results | /proc/nope/results
eval | --data=gs://bucket/text | --data is 'gs://bucket/text', an address
eval | --output=gs://bucket/results | an address
eval | --suite=paloma --paloma=gs://bucket/paloma | an address
bare: generation | | --checkpoint is missing
generation | --checkpoint=/no/such | '/no/such' does not exist
generation | --checkpoint=gs://bucket/run | an address
generation | --max-new-tokens=-3 | --max_new_tokens is '-3'; it must be a whole number of at least
generation | --max-new-tokens=1.5 | --max_new_tokens is '1.5'
generation | --samples=0 | --samples is '0'; it must be a whole number from 1
generation | --seed=4294967296 | --seed is '4294967296'; it must be a whole number from 0 to
generation | --seed=-1 | --seed is '-1'
generation | --temperature=hot | --temperature is 'hot'; it must be a number
generation | --temperature=-1 | temperature
generation | --temperature=nan | temperature
generation | --top_p=2 | top_p
generation | --top_k=0 | top_k
generation | --interactive --samples=2 | --samples
generation | --interactive=maybe | --interactive
generation | --prompt=\udcff | --prompt
generation | --session={file} | session file
generation | --session={corpus} | {corpus}
generation | --session=/no/such/session | /no/such
generation | --session=gs://bucket/session | --session is 'gs://bucket/session', an address
bare: prepare | | --source is missing
prepare | --source=/no/such | --source '/no/such' is no file
prepare | --source=gs://bucket/text | an address
prepare | --output= | --output is missing
prepare | --output={file} | {file}
prepare | --output=/proc/nope/out | /proc/nope/out
prepare | --tokenizer=./no/such.json | no/such.json
prepare | --tokenizer={file} | is no file of the `tokenizers` library
prepare | --split=test | --split is 'test'
prepare | --files=nothing* | fits none of the
prepare | --holdout-every=1 | holdout-every
prepare | --max-tokens=0 | --max-tokens is 0; it must be at least 1
prepare | --workers=many | --workers is 'many'
prepare | --on-damage=maybe | --on-damage is 'maybe'
prepare | --join=maybe | --join is 'maybe'
prepare | --source={jsonl} --field=body | body
prepare | --output=gs://bucket/out | an address
prepare | --tokenizer=gs://bucket/tokenizer.json | an address
bare: inspect | | the folder is missing
bare: inspect | {corpus} | holds no prepared data
bare: inspect | gs://bucket/data | an address
inspect | --documents=-1 | --documents is '-1'
inspect | --split=test | test
inspect | --verify=maybe | --verify is 'maybe'
bare: interop | | no action is given
bare: interop | convert | 'convert' is no action
bare: interop | import --output={new} | --source is missing
import | | is a run of this project
import | --source=/no/such | '/no/such' does not exist
import | --source={broken_run} | config.json can't be read
import | --source=gs://bucket/model | an address
import | --output={corpus} | exists and is not empty
import | --output={file} | {file}
export | --source={corpus} | holds no config.json
export | --source={broken_run} | config.json can't be used
export | --format=onnx | --format is 'onnx'; it must be one of
export | --dtype=int8 | --dtype is 'int8'
export | --weight_mode=fused | --weight_mode is 'fused'
export | --step=7 | there is no checkpoint of step 7
export | --step=x | --step is 'x'
export | --output=gs://bucket/model | an address
export | --output=/proc/nope/model | /proc/nope/model
bare: experiments | | no experiment is named
bare: experiments | formals | 'configs/formals.py' does not exist
bare: experiments | quickstart | is of one run and no experiment
bare: experiments | report formal --workdir={new} | is done; give the experiment's command first
bare: experiments | report formal --workdir={new} --seeds=2 | --seeds is of no use for a report
experiments | --preset=medium | --preset is 'medium'; it must be one of small, paper
experiments | --cells=latin | --cells has 'latin'; there are parity,
experiments | --models=lama | --models has 'lama'; there are llama,
experiments | --dims=wide | --dims is 'wide'; it must be a whole number
experiments | --learning_rates=fast | --learning_rates is 'fast'; it must be numbers above 0
experiments | --seeds=0 | --seeds is '0'; it must be a whole number of at least 1
experiments | --part=9/8 | --part is '9/8'; it must be NUMBER/PARTS
experiments | --workdir=gs://bucket/runs | an address
experiments | --workdir=/proc/nope/runs | /proc/nope/runs
experiments | --config=configs/llama.py | --config names a file
experiments | --config.train.step=3 | unknown config key train.step; did you mean train.steps
"""
ROWS = [tuple(part.strip() for part in line.split(" |")) for line in TABLE.strip().splitlines()]


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, str]:
    """What the rows name in braces."""
    base = tmp_path_factory.mktemp("places")
    corpus = base / "corpus"
    corpus.mkdir()
    for number in range(20):
        corpus.joinpath(f"{number:02}.txt").write_text(f"text {number} of the corpus\n" * 20)
    config = load(str(TINY), {"data.path": str(corpus)})
    shapes = language_model_params(build_model(config.model))
    write_params(
        base / "run", config, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    )
    file = base / "file.md"
    file.write_text("mine")
    (base / "jsonl").mkdir()
    (base / "jsonl/a.jsonl").write_text('{"text": "one"}\n')
    (base / "broken_run").mkdir()
    (base / "broken_run/config.json").write_text("{")
    configs = {
        "empty_config": "",
        "odd_config": "def get_config():\n    return None",
        "broken_config": "def get_config():\n    return (",
        "failing_config": "def get_config():\n    return 1 / 0",
        "variant_config": "def get_config(variant):\n    return None",
    }
    for name, text in configs.items():
        (base / f"{name}.py").write_text(text)
    prepared = base / "prepared"
    assert not prepare_command.main(
        ["prepare", f"--source={corpus}", "--tokenizer=byte", f"--output={prepared}",
         "--split=train", "--workers=1"]
    )  # fmt: skip
    there = ("corpus", "run", "jsonl", "prepared", "broken_run")
    return (
        {name: str(base / name) for name in there}
        | {name: str(base / f"{name}.py") for name in configs}
        | {"file": str(file)}
    )


@pytest.mark.parametrize(
    ("command", "arguments", "message"), ROWS, ids=[" ".join(row[:2]) for row in ROWS]
)
def test_a_wrong_call(command, arguments, message, places, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    names = places | {"new": str(tmp_path / "new")}
    bare = command.startswith(BARE)
    name = command.removeprefix(BARE)
    given = [*(() if bare else RIGHT[name]), *arguments.split()]
    given = [part.replace("\\udcff", "\udcff") for part in given]
    before = {path: path.stat().st_mtime_ns for path in _everything(places)}
    main = COMMANDS.get(name, interop_command.main)

    status = main([name, *(part.format(**names) for part in given)])

    lines = capsys.readouterr().err.strip().splitlines()
    lines = [line for line in lines if not re.search(PROGRESS, line)]
    assert (status, len(lines)) == (2, 1), (status, lines)
    assert lines[0].startswith("error: ") and message.format(**names) in lines[0], lines[0]
    assert {path: path.stat().st_mtime_ns for path in _everything(places)} == before
    assert not (tmp_path / "new/config.json").exists()


def _everything(places: dict[str, str]) -> list[pathlib.Path]:
    return sorted(pathlib.Path(places["file"]).parent.rglob("*"))


def test_the_process_itself_ends_with_one_line_and_status_2():
    done = subprocess.run(
        [sys.executable, "train.py", "--config=README.md", "--workdir=runs/x"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1), done.stderr
    assert done.stderr.startswith("error: config file 'README.md' is no Python file")


@pytest.mark.parametrize("help", [False, True], ids=["inspect", "help"])
def test_a_reader_that_is_gone_ends_a_command_without_a_word(help, places):
    """What `... | head -c 1` does: the pipe's other end is closed before all is written."""
    arguments = ["--help"] if help else [places["prepared"], "--documents=20"]
    process = subprocess.Popen(
        [sys.executable, "-m", "xlstm_jax.data.inspect", *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    process.stdout.close()
    errors = process.stderr.read().decode()
    assert process.wait() == 141  # 128 + SIGPIPE, as for every other program
    assert "Traceback" not in errors and "BrokenPipe" not in errors


def test_an_error_that_is_no_mistake_of_the_users_keeps_its_traceback(monkeypatch):
    """A bug must not look like a mistake of the user's."""
    monkeypatch.setattr(evaluation_command, "evaluate_suites", lambda *_: [][0])
    with pytest.raises(IndexError):
        eval_command.main(["eval.py", "--workdir=x"])


def test_every_command_has_rows():
    counts = {name: 0 for name in COMMANDS}
    for command, _, _ in ROWS:
        name = command.removeprefix(BARE)
        counts["interop" if name in ("import", "export") else name] += 1
    assert all(count >= 6 for count in counts.values()) and sum(counts.values()) >= 60, counts


def test_the_right_calls_are_right(places, tmp_path, monkeypatch):
    """What stands in RIGHT is refused by no row's fault but its own: the paths in it exist."""
    monkeypatch.chdir(ROOT)
    assert load(str(TINY)).model.slstm.num_heads == 2
    for given in RIGHT.values():
        for part in given:
            if "{new}" not in part and "/" in (value := part.format(**places).partition("=")[2]):
                assert pathlib.Path(value).exists(), value
