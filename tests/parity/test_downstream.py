"""The harness on our models: closed-form answers for a model that knows nothing, and its own `hf`
model on the same weights.
"""

import gzip
import json
import math

import jax
import lm_eval
import numpy as np
import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer, xLSTMForCausalLM

from tests.parity.test_conversion import RUN
from xlstm_jax.config import Config
from xlstm_jax.errors import UserError
from xlstm_jax.evaluation.downstream import (
    check_tasks,
    evaluate_tasks,
    find_tasks,
    generate_until,
    generation_rules,
)
from xlstm_jax.evaluation.paloma import by_source, evaluate_paloma
from xlstm_jax.evaluation.scoring import Scorer
from xlstm_jax.generation import Generator
from xlstm_jax.interop.convert import export_checkpoint
from xlstm_jax.interop.opening import open_checkpoint
from xlstm_jax.models import build_model
from xlstm_jax.runs.checkpoints import write_params
from xlstm_jax.runs.params import language_model_params

DOCUMENTS = [
    {
        "text": "the cat sat on the",
        "word": " mat",
        "choices": [" mat", " moon and stars", " sea"],
        "gold": 0,
    },
    {"text": "naïve façades are", "word": " old", "choices": [" rare", " old", " x"], "gold": 1},
    {
        "text": "one two three",
        "word": " four",
        "choices": [" five", " four", " fourteen"],
        "gold": 1,
    },
]
TASKS = {
    "local_word": """
output_type: loglikelihood
doc_to_text: '{{text}}'
doc_to_target: '{{word}}'
target_delimiter: ''
metric_list:
- metric: perplexity
  aggregation: perplexity
  higher_is_better: false
- metric: acc
  aggregation: mean
  higher_is_better: true
""",
    "local_choice": """
output_type: multiple_choice
doc_to_text: '{{text}}'
doc_to_choice: '{{choices}}'
doc_to_target: gold
target_delimiter: ''
metric_list:
- metric: acc
- metric: acc_norm
""",
    "local_rolling": """
output_type: loglikelihood_rolling
doc_to_text: ''
doc_to_target: '{{text}}'
metric_list:
- metric: word_perplexity
- metric: byte_perplexity
- metric: bits_per_byte
""",
    "local_generate": """
output_type: generate_until
doc_to_text: '{{text}}'
doc_to_target: '{{word}}'
generation_kwargs:
  until: ['a', 'zz']
  max_gen_toks: 12
  do_sample: false
metric_list:
- metric: exact_match
  aggregation: mean
  higher_is_better: true
""",
}


@pytest.fixture(scope="module")
def task_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "documents.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS))
    for name, body in TASKS.items():
        head = (
            f"task: {name}\ndataset_path: json\nvalidation_split: validation\n"
            f"dataset_kwargs:\n  data_files:\n    validation: {data}\n"
        )
        (folder / f"{name}.yaml").write_text(head + body)
    return folder


def scored(opened, task_folder, tasks=tuple(TASKS)):
    scorer = Scorer(opened.model, opened.params, batch_size=4)
    generator = Generator(opened.model, opened.params, opened.tokenizer)
    return evaluate_tasks(scorer, generator, tasks, include_path=str(task_folder))


def opened_run(folder, value):
    """A run whose every parameter is `value(rng, leaf)`."""
    rng = np.random.default_rng(0)
    shapes = language_model_params(build_model(RUN))
    write_params(
        folder,
        Config(model=RUN),
        jax.tree.map(lambda leaf: value(rng, leaf).astype(np.float32), shapes),
    )
    return open_checkpoint(str(folder))


def test_a_model_that_knows_nothing_scores_what_arithmetic_says(tmp_path, task_folder):
    opened = opened_run(tmp_path / "run", lambda rng, leaf: np.zeros(leaf.shape))
    results = scored(opened, task_folder)
    words = [len(document["word"].encode()) for document in DOCUMENTS]
    assert results["local_word"]["perplexity,none"] == pytest.approx(
        math.exp(math.log(257) * np.mean(words)), rel=1e-5
    )
    assert results["local_rolling"]["byte_perplexity,none"] == pytest.approx(257, rel=1e-5)
    assert results["local_rolling"]["bits_per_byte,none"] == pytest.approx(math.log2(257), rel=1e-5)
    shortest = [
        min(range(3), key=lambda k: len(document["choices"][k])) == document["gold"]
        for document in DOCUMENTS
    ]
    assert results["local_choice"]["acc,none"] == pytest.approx(np.mean(shortest))


def test_with_64_bit_types_the_results_are_the_same(tmp_path, task_folder):
    opened = opened_run(tmp_path / "run", lambda rng, leaf: rng.normal(0, 0.2, leaf.shape))
    expected = scored(opened, task_folder)
    with jax.enable_x64(True):
        results = scored(opened, task_folder)
    assert results.keys() == expected.keys()
    for name, numbers in expected.items():
        for metric, value in numbers.items():
            if isinstance(value, float):
                assert results[name][metric] == pytest.approx(value, rel=1e-5), (name, metric)


def test_the_harnesses_own_model_gives_the_same_numbers(tmp_path, task_folder):
    def value(rng, leaf):
        return (
            1 + rng.normal(0, 0.2, leaf.shape)
            if len(leaf.shape) < 3
            else rng.normal(0, leaf.shape[-2] ** -0.5, leaf.shape)
        )

    opened = opened_run(tmp_path / "run", value)
    export_checkpoint(str(tmp_path / "run"), str(tmp_path / "theirs"))
    theirs = HFLM(
        pretrained=xLSTMForCausalLM.from_pretrained(tmp_path / "theirs"),
        tokenizer=AutoTokenizer.from_pretrained(tmp_path / "theirs"),
        batch_size=1,
        max_length=2048,
    )
    manager = TaskManager(include_path=str(task_folder), include_defaults=False)
    tasks = list(TASKS)
    expected = lm_eval.simple_evaluate(
        model=theirs, tasks=tasks, task_manager=manager, bootstrap_iters=0, verbosity="ERROR"
    )["results"]
    results = scored(opened, task_folder)
    compared = 0
    for task, metrics in expected.items():
        for metric, number in metrics.items():
            if isinstance(number, float) and "stderr" not in metric:
                assert results[task][metric] == pytest.approx(number, rel=1e-4), (task, metric)
                compared += 1
    assert compared >= 7

    requests = [
        (document["text"], {"until": ["a", "zz"], "max_gen_toks": 12, "do_sample": False})
        for document in DOCUMENTS
    ]
    instances = [
        Instance("generate_until", {}, request, index) for index, request in enumerate(requests)
    ]
    generator = Generator(opened.model, opened.params, opened.tokenizer)
    assert generate_until(generator, requests, 2) == theirs.generate_until(
        instances, disable_tqdm=True
    )


def rules(**options):
    return generation_rules({"until": [], **options})


def test_generation_options_are_read_as_the_harness_reads_them():
    """Its `generation_kwargs` in every spelling that its own models take."""
    defaults = rules()
    assert defaults.max_new_tokens == 256 and defaults.stop == [] and defaults.max_length is None
    for spelling in ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"):
        assert rules(**{spelling: 5}).max_new_tokens == 5
        assert rules(**{spelling: "5"}).max_new_tokens == 5
    assert rules(max_new_tokens=5, max_gen_toks=7).max_new_tokens == 7
    assert rules(until="\n").stop == ["\n"] and rules(until=None).stop == []
    assert rules(until=["", "a"]).stop == ["a"]
    assert rules(max_length=9).max_length == 9
    # drawn only where it is asked for
    assert rules(temperature=0.7, do_sample=False).sampling.temperature == 0
    assert rules(temperature=0.7).sampling.temperature == 0.7
    assert rules(do_sample=True).sampling.temperature == 1
    drawn = rules(do_sample=True, top_k=3, top_p=0.9, min_p=0.1, repetition_penalty=1.2).sampling
    assert (drawn.top_k, drawn.top_p, drawn.min_p, drawn.repetition_penalty) == (3, 0.9, 0.1, 1.2)
    assert rules(do_sample=True, top_k=0).sampling.top_k is None
    assert rules(num_beams=1, length_penalty=1.0) == defaults
    for name, value in (("num_beams", 10), ("bad_words_ids", [[3]])):
        with pytest.raises(UserError, match=f"{name}.*not supported"):
            rules(**{name: value})


def test_as_many_tokens_come_as_the_task_asks_for(tmp_path):
    opened = opened_run(tmp_path / "run", lambda rng, leaf: rng.normal(0, 0.2, leaf.shape))
    generator = Generator(opened.model, opened.params, opened.tokenizer)
    counts = []
    write = generator.write

    def counting(session, count, **options):
        counts.append((count, list(options["seeds"])))
        return write(session, count, **options)

    generator.write = counting
    drawn = {"do_sample": True, "temperature": 1.0, "until": []}
    requests = [
        ("same", {"until": [], "max_new_tokens": 5}),
        ("same", {**drawn, "max_tokens": 6}),
        ("same", {**drawn, "max_tokens": 6}),
        ("same", {"until": [], "max_length": 7}),  # the four bytes of the context included
        ("longer", {"until": [], "max_length": 7}),
    ]
    texts = generate_until(generator, requests, 2)
    assert counts == [(5, [0, 0]), (6, [1, 2]), (3, [3, 3]), (1, [4, 4])]
    assert texts[1] != texts[2]  # a request that the harness repeats draws anew


def test_all_tasks_of_a_folder_are_meant_where_none_is_named(task_folder, tmp_path):
    assert sorted(find_tasks(None, str(task_folder))[0]) == sorted(TASKS)
    with pytest.raises(UserError, match="has no tasks"):
        find_tasks(None, str(tmp_path))


def test_data_that_are_missing_are_found_before_anything_is_scored(tmp_path):
    (tmp_path / "gone.yaml").write_text(
        "task: gone\ndataset_path: json\nvalidation_split: validation\n"
        f"dataset_kwargs:\n  data_files:\n    validation: {tmp_path}/gone.jsonl\n"
        + TASKS["local_choice"]
    )
    with pytest.raises(UserError, match="the data of gone can't be had"):
        check_tasks(None, str(tmp_path))


def test_palomas_bytes_are_the_harnesses(tmp_path, task_folder):
    opened = opened_run(tmp_path / "run", lambda rng, leaf: rng.normal(0, 0.2, leaf.shape))
    path = tmp_path / "paloma" / "local" / "val" / "all.jsonl.gz"
    path.parent.mkdir(parents=True)
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(document) + "\n" for document in DOCUMENTS)
    scorer = Scorer(opened.model, opened.params, batch_size=4)
    (source,) = by_source(evaluate_paloma(scorer, opened.tokenizer, str(tmp_path / "paloma")))
    theirs = scored(opened, task_folder, ("local_rolling",))["local_rolling"]
    assert source.bits_per_byte == pytest.approx(theirs["bits_per_byte,none"], rel=1e-6)
    assert math.exp(source.nats / source.words) == pytest.approx(
        theirs["word_perplexity,none"], rel=1e-5
    )


def test_an_unknown_task_is_named(tmp_path, task_folder):
    opened = opened_run(tmp_path / "run", lambda rng, leaf: np.zeros(leaf.shape))
    with pytest.raises(UserError, match="'local_nothing'"):
        scored(opened, task_folder, ("local_nothing",))
