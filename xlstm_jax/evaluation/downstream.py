"""EleutherAI's lm-evaluation-harness 0.4.13 on our models: its tasks and metrics, our batches."""

from collections.abc import Sequence
from typing import Any

from xlstm_jax.errors import UserError
from xlstm_jax.evaluation.paloma import rolling_windows
from xlstm_jax.evaluation.scoring import Scorer
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


def evaluate_tasks(
    scorer: Scorer,
    generator: Generator,
    tasks: Sequence[str],
    *,
    include_path: str | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    max_length: int = 2048,
) -> dict[str, dict[str, Any]]:
    """Task -> metric -> value, as the harness reports them.

    Args:
        tasks: names; "paper" stands for the paper's six.
        include_path: folder of the user's own task files; then only these exist.
        limit: documents of each task.
        max_length: of the windows of rolling log-likelihoods; contexts of the other requests are
            never cut.

    Raises:
        UserError: the harness is not installed, a task does not exist, or its data can't be had.
    """
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise UserError(MISSING) from None
    names = [name for task in tasks for name in (PAPER_TASKS if task == "paper" else [task])]
    manager = TaskManager(include_path=include_path, include_defaults=include_path is None)
    if unknown := [name for name in names if name not in manager.all_tasks]:
        raise UserError(
            f"task {unknown[0]!r} is not one of the harness's; `lm_eval --tasks list` prints all"
        )
    model = harness_model(scorer, generator, max_length)
    try:
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
    except (OSError, ConnectionError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"the data of {', '.join(names)} can't be had: {first}; the harness downloads them "
            f"from the hub"
        ) from error
    return {task: dict(values) for task, values in results["results"].items()}


def paper_average(results: dict[str, dict[str, Any]]) -> float | None:
    """The plain mean of the six accuracies in percent, as in the paper; None where one is missing."""
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
            scores = scorer.score(
                [(context, continuation) for _, context, continuation in requests]
            )
            return [(score.log_probability, score.is_greedy) for score in scores]

        def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
            windows = [
                rolling_windows(self.tok_encode(text), self.prefix_token_id, max_length)
                for (text,) in (r.args for r in requests)
            ]
            scores = iter(scorer.score([pair for pairs in windows for pair in pairs]))
            return [sum(next(scores).log_probability for _ in pairs) for pairs in windows]

        def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
            return generate_until(
                generator, [request.args for request in requests], scorer.batch_size
            )

    return HarnessModel()


def generate_until(
    generator: Generator, requests: Sequence[tuple[str, dict[str, Any]]], batch_size: int
) -> list[str]:
    """The texts that follow (context, options) pairs; the options are the harness's: until,
    max_gen_toks, do_sample, temperature, ...
    """
    texts: dict[int, str] = {}
    alike: dict[str, list[int]] = {}
    for number, (_, options) in enumerate(requests):
        alike.setdefault(repr(sorted(options.items(), key=repr)), []).append(number)
    for numbers in alike.values():
        numbers = sorted(numbers, key=lambda number: -len(requests[number][0]))
        for start in range(0, len(numbers), batch_size):
            part = numbers[start : start + batch_size]
            options = requests[part[0]][1]
            until = options.get("until") or []
            contexts = [generator.tokenizer.encode(requests[number][0]).tolist() for number in part]
            filled = contexts + [contexts[-1]] * (batch_size - len(part))
            written = generator.write(
                generator.read_tokens(
                    [context or [generator.tokenizer.end_of_text] for context in filled]
                ),
                int(options.get("max_gen_toks", 256)),
                sampling=_sampling(options),
                stop=[until] if isinstance(until, str) else list(until),
            )
            held = generator.held(written.session)  # nothing follows that could make more of it
            texts |= {
                number: text + rest
                for number, text, rest in zip(part, written.texts, held, strict=False)
            }
    return [texts[number] for number in range(len(requests))]


def _sampling(options: dict[str, Any]) -> Sampling:
    temperature = float(options.get("temperature", 1.0 if options.get("do_sample") else 0.0))
    if not options.get("do_sample", temperature > 0):
        temperature = 0.0
    return Sampling(
        temperature=temperature, top_k=options.get("top_k") or None, top_p=options.get("top_p")
    )
