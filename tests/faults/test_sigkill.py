"""A run that is killed 20 times, at random moments and while it writes checkpoints, has the
undisturbed run's losses to the last bit.
"""

import random
import time

from tests.training.jobs import finish, start, train_losses

KILLS = 20


def test_twenty_kills_change_no_bit_of_any_loss(arguments, tmp_path):
    more = ["--config.train.steps=1200", "--config.checkpoint.every=7", "--config.eval.every=100"]
    [(status, output)] = finish(start(arguments(tmp_path / "undisturbed", *more)), timeout=600)
    assert status == 0, output
    expected = train_losses(tmp_path / "undisturbed")
    assert len(expected) == 1200

    draw, killed, writing = random.Random(0), tmp_path / "killed", 0
    for number in range(KILLS):
        before = max(train_losses(killed), default=0)
        [process] = start(arguments(killed, *more))
        wanted = before + draw.randint(1, 1200 // KILLS // 2)
        while max(train_losses(killed), default=0) < wanted and process.poll() is None:
            time.sleep(0.005)
        if number % 2:  # while a checkpoint is being written
            deadline = time.monotonic() + 10
            while (
                not list((killed / "checkpoints").glob("*tmp*"))
                and time.monotonic() < deadline
                and process.poll() is None
            ):
                pass
            writing += bool(list((killed / "checkpoints").glob("*tmp*")))
        assert process.poll() is None, process.communicate()[0]
        process.kill()
        process.communicate()
        seen = train_losses(killed)
        assert all(expected[step] == loss for step, loss in seen.items()), (
            f"after kill {number + 1}"
        )
    [(status, output)] = finish(start(arguments(killed, *more)), timeout=600)
    assert status == 0, output
    assert train_losses(killed) == expected
    assert writing >= 3, f"only {writing} kills met a checkpoint that was being written"
