import signal
import threading
import time

import pytest
import torch

from cutwork.bench import limits


def test_what_takes_too_long_is_ended_between_two_lines_of_python():
    start = time.perf_counter()
    with pytest.raises(limits.OutOfTimeError), limits.end_after(0.05):
        while True:
            torch.ones(10).sum()
    assert time.perf_counter() - start < 5


def test_what_ends_in_time_is_left_alone_and_the_alarm_is_put_back():
    before = signal.getsignal(signal.SIGALRM)
    with limits.end_after(100):
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert signal.getsignal(signal.SIGALRM) is before


def test_a_thread_that_cannot_be_interrupted_runs_to_its_end():
    done = []

    def run():
        with limits.end_after(0.01):
            time.sleep(0.05)
            done.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert done == [True]


def test_nobody_on_the_way_takes_it_for_an_error_of_theirs():
    assert not issubclass(limits.OutOfTimeError, Exception)


@pytest.mark.parametrize("work", ["forward", "dX", "dW", "step"])
def test_a_precision_is_slower_by_what_its_products_take(work, monkeypatch):
    times = {(torch.float32, "forward"): 1.0, (torch.float32, "dX"): 1.0, (torch.float32, "dW"): 2.0}
    times |= {(torch.bfloat16, "forward"): 3.0, (torch.bfloat16, "dX"): 50.0, (torch.bfloat16, "dW"): 7.0}
    monkeypatch.setattr(limits, "_time_of", lambda dtype, one, clock: times[dtype, one])
    clock = lambda: 0.0  # noqa: E731
    assert limits.slowdown("bf16", work, clock) == {"forward": 3, "dX": 50, "dW": 3.5, "step": 15}[work]
    assert limits.slowdown("fp32", work, clock) == limits.slowdown("int8", work, clock) == 1


def test_the_real_products_are_measured_and_a_clock_that_stands_still_is_no_error():
    assert limits.operations_per_s(time.perf_counter) > 1e6
    assert limits.slowdown("bf16", "step", time.perf_counter) > 0
    assert limits.slowdown("bf16", "step", lambda: 0.0) == 1


def test_a_guess_does_not_depend_on_how_many_threads_wait_for_each_other(monkeypatch):
    used = []
    monkeypatch.setattr(limits.F, "linear", lambda x, weight: used.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        limits._time_of(torch.float32, "forward", time.perf_counter)
        assert set(used) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
