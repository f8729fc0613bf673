"""EleutherAI's lm-evaluation-harness 0.4.13 on our models: its tasks and metrics, our batches."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from xlstm_jax import progress
from xlstm_jax.errors import UserError
from xlstm_jax.evaluation.paloma import rolling_windows
from xlstm_jax.evaluation.scoring import Pair, Score, Scorer
from xlstm_jax.generation import session as sessions
from xlstm_jax.generation.generator import Generator
from xlstm_jax.generation.sampling import Sampling
from xlstm_jax.installation import install

# The paper's six tasks (table 3): name -> the metric that the paper reports.
PAPER_TASKS = {
    "lambada_openai": "acc",
    "hellaswag": "acc_norm",
    "piqa": "acc",
    "arc_easy": "acc",
    "arc_challenge": "acc_norm",
    "winogrande": "acc",
}
MISSING = f"the downstream suite needs the lm-evaluation-harness: {install('eval')}"


def find_tasks(tasks: Sequence[str] | None, include_path: str | None) -> tuple[list[str], Any]:
    """(names of tasks, the harness's `TaskManager` that knows them).

    Args:
        tasks: names; "paper" stands for the paper's six; None: these, or all of `include_path`.
        include_path: folder of the user's own task files; then only these exist.

    Raises:
        UserError: the harness is not installed, or a task does not exist.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise UserError(MISSING) from None
    manager = TaskManager(include_path=include_path, include_defaults=include_path is None)
    if tasks is None:
        tasks = ["paper"] if include_path is None else sorted(manager.all_subtasks)
    names = [name for task in tasks for name in (PAPER_TASKS if task == "paper" else [task])]
    if unknown := [name for name in names if name not in manager.all_tasks]:
        known = "`lm_eval --tasks list` prints all"
        if include_path is not None:
            known = f"{include_path!r} has {', '.join(sorted(manager.all_tasks)) or 'none'}"
        raise UserError(f"task {unknown[0]!r} is not one of the harness's; {known}")
    if not names:
        raise UserError(f"--task_folder {include_path!r} has no tasks; they are *.yaml files")
    return names, manager


def check_tasks(tasks: Sequence[str] | None, include_path: str | None) -> None:
    """Loads the tasks and their data, so that hours of other suites do not end at a missing one.

    Raises:
        UserError: as `evaluate_tasks`.
    """
    names, manager = find_tasks(tasks, include_path)
    with _names_missing_data(names):
        manager.load(names)


@contextlib.contextmanager
def _names_missing_data(names: Sequence[str]) -> Iterator[None]:
    try:
        yield
    except (OSError, ConnectionError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"the data of {', '.join(names)} can't be had: {first}; the harness downloads them "
            f"from the hub"
        ) from error


def evaluate_tasks(
    scorer: Scorer,
    generator: Generator,
    tasks: Sequence[str] | None,
    *,
    include_path: str | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    max_length: int = 2048,
) -> dict[str, dict[str, Any]]:
    """Task -> metric -> value, as the harness reports them.

    Args:
        tasks: as in `find_tasks`.
        include_path: as in `find_tasks`.
        limit: documents of each task.
        max_length: of the windows of rolling log-likelihoods; contexts of the other requests are
            never cut.

    Raises:
        UserError: the harness is not installed, a task does not exist, or its data can't be had.
    """
    names, manager = find_tasks(tasks, include_path)
    import lm_eval

    model = harness_model(scorer, generator, max_length)
    with _names_missing_data(names):
        results = lm_eval.simple_evaluate(
            model=model,
            tasks=names,
            task_manager=manager,
            num_fewshot=num_fewshot,
            limit=limit,
            bootstrap_iters=0,
            log_samples=False,
            verbosity="ERROR",
        )
    return {task: dict(values) for task, values in results["results"].items()}


def paper_average(results: dict[str, dict[str, Any]]) -> float | None:
    """The plain mean of the six accuracies in percent, as in the paper; None where one is
    missing.
    """
    values = [results.get(task, {}).get(f"{metric},none") for task, metric in PAPER_TASKS.items()]
    return None if None in values else 100 * sum(values) / len(values)


def harness_model(scorer: Scorer, generator: Generator, max_length: int = 2048) -> Any:
    """An `lm_eval.api.model.LM` around a scorer and a generator. The class is made here, since the
    harness is optional.
    """
    try:
        from lm_eval.api.model import TemplateLM
    except ImportError:
        raise UserError(MISSING) from None
    tokenizer = generator.tokenizer

    class HarnessModel(TemplateLM):
        """Towards the harness one process; devices are the scorer's business."""

        tokenizer_name = tokenizer.name

        @property
        def eot_token_id(self) -> int:
            return tokenizer.end_of_text

        def tok_encode(
            self, string: str, add_special_tokens: bool | None = None, **kwargs
        ) -> list[int]:
            return tokenizer.encode(string).tolist()

        def _loglikelihood_tokens(self, requests, **kwargs) -> list[tuple[float, bool]]:
            pairs = [(context, continuation) for _, context, continuation in requests]
            return [(score.log_probability, score.is_greedy) for score in self._scores(pairs)]

        def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
            windows = [
                rolling_windows(self.tok_encode(text), self.prefix_token_id, max_length)
                for (text,) in (r.args for r in requests)
            ]
            scores = iter(self._scores([pair for pairs in windows for pair in pairs]))
            return [sum(next(scores).log_probability for _ in pairs) for pairs in windows]

        def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
            return generate_until(
                generator, [request.args for request in requests], scorer.batch_size
            )

        def _scores(self, pairs: list[Pair]) -> list[Score]:
            with progress.bar(len(pairs), "downstream", "continuations") as bar:
                return scorer.score(pairs, bar.update)

    return HarnessModel()


def generate_until(
    generator: Generator, requests: Sequence[tuple[str, dict[str, Any]]], batch_size: int
) -> list[str]:
    """The texts that follow (context, options) pairs. The options are the harness's
    `generation_kwargs`, in all spellings that its own models take.

    Raises:
        UserError: an option that would be ignored, such as num_beams=10.
    """
    tokenizer = generator.tokenizer
    contexts = [tokenizer.encode(text).tolist() or [tokenizer.end_of_text] for text, _ in requests]
    alike: dict[tuple[str, int], list[int]] = {}
    for number, (_, options) in enumerate(requests):
        # under a max_length, only contexts of one length get as many new tokens
        length = len(contexts[number]) if options.get("max_length") else 0
        alike.setdefault((repr(sorted(options.items(), key=repr)), length), []).append(number)
    rules = {key: generation_rules(requests[numbers[0]][1]) for key, numbers in alike.items()}
    texts: dict[int, str] = {}
    with progress.bar(len(requests), "downstream", "texts") as bar:
        for key, numbers in alike.items():
            sampling, stop, count, max_length = rules[key]
            if max_length is not None:
                count = max(0, max_length - key[1])
            numbers = sorted(numbers, key=lambda number: -len(contexts[number]))
            for start in range(0, len(numbers), batch_size):
                part = numbers[start : start + batch_size]
                filled = part + part[-1:] * (batch_size - len(part))
                length = len(contexts[part[0]])  # the longest comes first
                cache_length = sessions.padded(length) + count  # few lengths: few programs
                session = generator.read_tokens(
                    [contexts[number] for number in filled], cache_length=cache_length
                )
                written = generator.write(
                    session,
                    count,
                    sampling=sampling,
                    # by request: one that the harness repeats draws another text each time
                    seeds=filled,
                    stop=stop,
                )
                held = generator.held(written.session)  # nothing follows that could make more of it
                whole = (text + rest for text, rest in zip(written.texts, held, strict=True))
                texts |= dict(zip(part, whole, strict=False))
                bar.update(len(part))
    return [texts[number] for number in range(len(requests))]


class GenerationRules(NamedTuple):
    """What `generation_kwargs` of the harness ask for.

    Attributes:
        max_length: of context and new tokens together, where it is given; it goes before
            max_new_tokens.
    """

    sampling: Sampling
    stop: list[str]
    max_new_tokens: int
    max_length: int | None


# Options of transformers' `generate` that change nothing with these values.
WITHOUT_EFFECT = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_new_tokens": 0,
    "typical_p": 1.0,
    "use_cache": True,
    "early_stopping": False,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


def generation_rules(options: dict[str, Any]) -> GenerationRules:
    """The harness's own reading of its `generation_kwargs`: until (a text, a list or nothing),
    max_gen_toks or max_new_tokens or max_tokens or max_completion_tokens, do_sample, temperature;
    and those of transformers that our sampling has: top_k, top_p, min_p, repetition_penalty,
    max_length.

    Raises:
        UserError: an option that would be ignored.
    """
    from lm_eval.models.utils import normalize_gen_kwargs

    rest = dict(normalize_gen_kwargs({**options, "until": options.get("until") or []}))
    stop, max_new_tokens = rest.pop("until"), rest.pop("max_gen_toks")
    do_sample, temperature = rest.pop("do_sample", False), rest.pop("temperature", 1.0)
    max_length = rest.pop("max_length", None)
    top_k, top_p = rest.pop("top_k", None), rest.pop("top_p", None)
    sampling = Sampling(
        temperature=float(temperature) if do_sample else 0.0,
        top_k=top_k if top_k and top_k > 0 else None,  # 0 and -1: all
        top_p=top_p,
        min_p=rest.pop("min_p", None),
        repetition_penalty=float(rest.pop("repetition_penalty", 1.0)),
    )
    for name, value in rest.items():
        if value is not None and (name not in WITHOUT_EFFECT or WITHOUT_EFFECT[name] != value):
            raise UserError(
                f"the task asks for the generation option {name}={value!r}, which is not "
                f"supported; take it out of the task's generation_kwargs"
            )
    return GenerationRules(
        sampling, [text for text in stop if text], max_new_tokens, max_length and int(max_length)
    )
