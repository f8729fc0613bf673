"""A run that is killed without warning goes on as if nothing had happened."""

import signal
import time

import pytest

from tests.training.jobs import finish, start, train_losses


@pytest.mark.slow
def test_after_sigkill_the_losses_are_the_same_to_the_last_bit(arguments, tmp_path):
    more = ["--config.train.steps=200", "--config.checkpoint.every=20", "--config.eval.every=1000"]
    [(status, output)] = finish(start(arguments(tmp_path / "undisturbed", *more)))
    assert status == 0, output

    killed = tmp_path / "killed"
    [process] = start(arguments(killed, *more))
    deadline = time.monotonic() + 300
    while len(train_losses(killed)) < 50:
        assert process.poll() is None and time.monotonic() < deadline, (
            "the run ended before it could be killed"
        )
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    seen = train_losses(killed)
    assert 50 <= len(seen) < 200

    [(status, output)] = finish(start(arguments(killed, *more)))
    assert status == 0 and "resumed from step " in output, output
    expected = train_losses(tmp_path / "undisturbed")
    assert len(expected) == 200 and train_losses(killed) == expected
    assert all(expected[step] == loss for step, loss in seen.items())
