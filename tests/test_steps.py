"""Work in steps, and what is done of it while a thread would only wait."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from token_meter.steps import Ahead, Steps, meanwhile, step_meanwhile, worked_off


def counting(
    seen: list[int], upto: int = 3, *, fails_at: int | None = None, error: BaseException | None = None
) -> Steps[str]:
    for number in range(upto):
        if number == fails_at:
            raise error or ValueError("no")
        seen.append(number)
        yield
    return "done"


def test_work_can_be_done_at_once() -> None:
    seen: list[int] = []

    assert worked_off(counting(seen)) == "done"
    assert seen == [0, 1, 2]


def test_work_that_is_ahead_is_finished_when_it_is_wanted() -> None:
    seen: list[int] = []
    ahead = Ahead(counting(seen))

    assert ahead.step()
    assert seen == [0]
    assert ahead.finish() == "done"
    assert seen == [0, 1, 2]
    assert not ahead.step()
    assert ahead.finish() == "done"


def test_what_goes_wrong_ahead_is_raised_when_the_result_is_wanted() -> None:
    ahead = Ahead(counting([], fails_at=1))

    assert [ahead.step() for _ in range(3)] == [True, False, False]
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            ahead.finish()


def test_code_that_wants_to_end_the_program_does_not_end_what_is_under_way() -> None:
    ahead = Ahead(counting([], fails_at=1, error=SystemExit(1)))

    assert [ahead.step() for _ in range(3)] == [True, False, False]
    with pytest.raises(SystemExit):
        ahead.finish()


def test_whoever_interrupts_the_program_is_heard_at_once() -> None:
    ahead = Ahead(counting([], fails_at=1, error=KeyboardInterrupt()))
    ahead.step()

    with pytest.raises(KeyboardInterrupt):
        ahead.step()


def test_work_that_nobody_wants_is_left_behind_tidily() -> None:
    closed = []

    def work() -> Steps[None]:
        try:
            yield
        finally:
            closed.append(True)

    ahead = Ahead(work())
    ahead.step()
    ahead.drop()

    assert closed == [True]


def test_a_step_is_taken_only_where_somebody_asked_for_it() -> None:
    seen: list[int] = []
    assert not step_meanwhile()

    with meanwhile(Ahead(counting(seen)).step):
        assert step_meanwhile()
    assert not step_meanwhile()

    assert seen == [0]


def test_what_is_done_meanwhile_is_not_interrupted_by_itself() -> None:
    nested: list[bool] = []

    def step() -> bool:
        nested.append(step_meanwhile())
        return True

    with meanwhile(step):
        assert step_meanwhile()
        assert step_meanwhile()

    assert nested == [False, False]


def test_another_thread_has_nothing_to_do_with_it() -> None:
    found: list[bool] = []

    with meanwhile(lambda: True):
        other = threading.Thread(target=lambda: found.append(step_meanwhile()))
        other.start()
        other.join()

    assert found == [False]


def test_an_error_in_a_step_leaves_the_rest_of_the_thread_alone() -> None:
    steps: Iterator[bool] = iter([True])

    def step() -> bool:
        return next(steps)

    with meanwhile(step):
        assert step_meanwhile()
        with pytest.raises(StopIteration):
            step_meanwhile()
        with pytest.raises(StopIteration):
            step_meanwhile()  # still there
    assert not step_meanwhile()
