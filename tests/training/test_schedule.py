"""The learning rate of each step; and a time budget that is kept whatever the machine does."""

import random

import pytest

from npgpt.training.plan import CHOICES, make_plan
from npgpt.training.schedule import Budget, Schedule


def rates(schedule):
    return [schedule.rate(step) for step in range(1, schedule.steps + 1)]


@pytest.mark.parametrize("name", CHOICES["schedule"])
def test_learning_rate_rises_then_falls(name):
    plan = make_plan(10**6, steps=100, warmup=10, lr=1.0, min_lr=0.1, schedule=name)
    found = rates(Schedule(plan))
    assert found[0] == pytest.approx(0.1) and found[9] == 1 == max(found)
    assert found[9:] == sorted(found[9:], reverse=True)
    assert found[-1] == pytest.approx(1 if name == "constant" else 0.1)
    halfway = {"linear": 0.55, "cosine": 0.55, "constant": 1}[name]
    assert found[54] == pytest.approx(halfway)
    assert Schedule(make_plan(10, steps=1, warmup=0, schedule=name)).rate(1) > 0


def test_the_last_tenth_goes_over_the_whole_vocabulary():
    for name, expected in (("sampled", [True] * 90 + [False] * 10), ("full", [False] * 100)):
        schedule = Schedule(make_plan(10**6, steps=100, warmup=0, softmax=name))
        assert [schedule.sampled(step) for step in range(100)] == expected


def test_unknown_schedules_are_refused():
    with pytest.raises(ValueError, match="schedule must be one of linear, cosine, constant, got 'steps'"):
        make_plan(10**6, schedule="steps")


def test_an_end_that_moves_changes_nothing_behind_it():
    plan = make_plan(10**6, steps=100, warmup=10)
    schedule = Schedule(plan)
    before = rates(schedule)
    schedule.end_at(40, 200)
    schedule.end_at(150, 170)
    after = rates(schedule)
    assert after[:40] == before[:40] and schedule.steps == len(after) == 170
    assert after[10:] == sorted(after[10:], reverse=True) and after[-1] == pytest.approx(plan.min_lr)
    assert rates(Schedule(plan, schedule.knots)) == after
    early = Schedule(plan)
    early.end_at(5, 50)  # while it warms up
    assert rates(early) == rates(Schedule(make_plan(10**6, steps=50, warmup=10)))


@pytest.mark.parametrize("guess", [20, 1000, 30000])
@pytest.mark.parametrize("weather", ["steady", "noisy", "slower", "faster", "stalls"])
def test_minutes_are_kept_within_ten_percent(guess, weather):
    """A simulated clock: steps of about 0.05 s, an evaluation of 2 s every 100 steps, 600 s in all."""
    rng = random.Random(0)
    plan = make_plan(10**6, steps=guess, minutes=10, eval_every=100)
    schedule, budget = Schedule(plan), Budget(600)
    step = spent = 0
    while step < schedule.steps:
        step += 1
        half = spent > 300
        seconds = (
            0.05
            * {
                "steady": 1,
                "noisy": rng.lognormvariate(0, 0.5),
                "slower": 3 if half else 1,
                "faster": 0.4 if half else 1,
                "stalls": 400 if rng.random() < 0.001 else 1,
            }[weather]
        )
        spent += seconds
        budget.saw_step(seconds)
        if step % 100 == 0:
            spent += 2
            budget.saw_evaluation(2)
        if schedule.knots[-1][0] < step < schedule.steps:
            end = budget.new_end(step, schedule.steps, 100, spent, closing=5)
            if end is not None:
                schedule.end_at(step, end)
    if guess > 100 or weather == "never":  # a guess of 20 steps has ended before anything was measured
        assert 540 <= spent + 5 <= 660, spent
        assert schedule.rate(step) == pytest.approx(plan.min_lr)
        assert len(schedule.knots) < 40


@pytest.mark.parametrize("name", CHOICES["schedule"])
@pytest.mark.parametrize("done, steps", [(100, 200), (100, 101), (60, 80)])
def test_a_longer_run_goes_on_as_if_it_had_been_planned_so(name, done, steps):
    """It ended at `done`, which its patience may have chosen: the rates up to there stay."""
    short = make_plan(10**6, steps=100, warmup=10, schedule=name)
    schedule, long = Schedule(short), Schedule(make_plan(10**6, steps=steps, warmup=10, schedule=name))
    before = rates(schedule)
    schedule.go_on(done, steps)
    assert rates(schedule)[:done] == before[:done] and schedule.steps == steps
    assert rates(schedule)[done:] == pytest.approx(rates(long)[done:])
    assert rates(Schedule(short, schedule.knots)) == rates(schedule)


def test_a_run_that_ended_while_it_warmed_up_goes_on_to_warm_up():
    schedule = Schedule(make_plan(10**6, steps=5, warmup=10))
    schedule.go_on(5, 50)
    assert rates(schedule) == pytest.approx(rates(Schedule(make_plan(10**6, steps=50, warmup=10))))
