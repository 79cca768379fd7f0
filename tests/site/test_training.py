"""Learning rates over the whole run, clipping, accumulation, precision."""

import math

import pytest
import torch

from omnifm.config import Experiment, Train
from omnifm.site.training import Course, make_optimizer, rate_share, scaler_for


def train(**changes):
    return Train(num_rounds=5, local_epochs=2, batch_size=4, lr=0.1, **changes)


def rates_of(settings, num_cases, number, *, alone=False):
    """The rate of every step of one local training."""
    weight = torch.nn.Parameter(torch.ones(1))
    course = Course.of(settings, num_cases, number, alone=alone)
    optimizer = make_optimizer(settings, course, [weight])
    rates = []
    for _ in range(course.total // settings.num_rounds):
        rates.append(optimizer.param_groups[0]["lr"])
        weight.grad = torch.ones(1)
        optimizer.step()
    return rates


class TestSchedule:
    def test_rounds_join_to_one_course_over_the_run(self):
        """Nine cases make 3 batches, so 6 steps a round and 30 in all: poly's rates, whatever round a site resumes."""
        settings = train(schedule="poly", optimizer="sgd")
        rates = [rate for number in range(1, 6) for rate in rates_of(settings, 9, number)]
        assert rates == pytest.approx([0.1 * (1 - step / 30) ** 0.9 for step in range(30)])

    def test_cosine_with_warmup_rises_first(self):
        shares = [rate_share(train(schedule="cosine", warmup=0.2), step, 10) for step in range(10)]
        assert shares[:3] == pytest.approx([0.5, 1.0, 1.0])
        assert shares[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))
        assert shares[2:] == sorted(shares[2:], reverse=True)

    def test_constant_is_constant(self):
        assert set(rates_of(train(), 9, 3)) == {0.1}

    def test_the_last_training_goes_on_with_the_last_rate_or_its_own(self):
        last = rates_of(train(schedule="poly"), 9, 5)[-1]
        assert rates_of(train(schedule="poly"), 9, 5, alone=True) == pytest.approx([last] * 6)
        assert rates_of(train(schedule="poly", personal_lr=0.05), 9, 5, alone=True) == pytest.approx([0.005] * 6)

    def test_accumulation_makes_fewer_steps(self):
        assert Course.of(train(accumulate=2), 9, 2, alone=False) == Course(first=4, total=20)


class TestOptimizer:
    def test_long_gradients_are_scaled_down(self):
        weights = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))]
        optimizer = make_optimizer(train(optimizer="sgd", grad_clip=1.0), Course(0, 10), weights)
        weights[0].grad, weights[1].grad = torch.tensor([0.0, 3.0]), torch.tensor([4.0])
        optimizer.step()
        torch.testing.assert_close(torch.cat([w.detach() for w in weights]), torch.tensor([0.0, -0.06, -0.08]))

    def test_sgd_has_momentum(self):
        optimizer = make_optimizer(train(optimizer="sgd", momentum=0.9, nesterov=True), Course(0, 10), [_weight()])
        assert (optimizer.defaults["momentum"], optimizer.defaults["nesterov"]) == (0.9, True)

    def test_half_precision_needs_a_gpu(self):
        with pytest.raises(ValueError, match="fp16 needs a GPU; this site trains on its processor: choose bf16"):
            scaler_for(train(precision="fp16"), torch.device("cpu"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"momentum": 0.9}, "momentum is for the optimizer sgd; the optimizer is adamw"),
        ({"optimizer": "sgd", "nesterov": True}, "nesterov needs train.momentum > 0"),
        ({"grad_clip": 0.0}, "train.grad_clip: input should be greater than 0"),
        ({"precision": "fp8"}, "train.precision: input should be 'fp32', 'bf16' or 'fp16'"),
        ({"warmup": 1.0}, "train.warmup: input should be less than 1"),
    ],
)
def test_wrong_settings_are_refused_by_name(changes, words):
    with pytest.raises(ValueError, match=words):
        Experiment.from_job("seg_fets").changed({"train": changes})


def _weight():
    return torch.nn.Parameter(torch.ones(1))
