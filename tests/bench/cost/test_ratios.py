"""The arithmetic of ratios with made-up timings, and every section at a tiny size; no test looks at how fast we are."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from omnifm.bench.cost import flare_round, processes, training_step
from omnifm.bench.cost import measure as arithmetic
from omnifm.bench.cost import ratios as cost
from omnifm.bench.cost.measure import Measure, Seconds
from omnifm_flare import stock_fedavg
from tests.conftest import ROOT


def pairs(*walls: tuple[float, float]) -> list[tuple[Seconds, Seconds]]:
    """CPU seconds are half of the wall's, for the first of a pair a quarter."""
    return [(Seconds(1.0 * ours, ours / 4), Seconds(1.0 * theirs, theirs / 2)) for ours, theirs in walls]


def walls(times: list[float]) -> list[float]:
    return [wall for wall, _ in flare_round.spent(times, [])]


def measure(value: float, bar: float = 1.0) -> Measure:
    return Measure("step", value, value, value, None, bar, "x", "made up")


class TestRatio:
    def test_golden(self):
        """Ratios 1, 1.5, 2, 3, 100: the median 2, quartiles 1.5 and 3; CPU half of it; one bad pair moves nothing."""
        found = arithmetic.ratio("step", pairs((1, 1), (3, 2), (4, 2), (3, 1), (100, 1)), 2.5, "x")
        assert (found.value, found.low, found.high, found.cpu) == (2.0, 1.5, 3.0, 1.0)

    def test_pairs_are_divided_before_the_median(self):
        """Ratios 10, 2, 1.5: the median is 2; the medians of the sides, 6 and 2, would give 3."""
        assert arithmetic.ratio("step", pairs((10, 1), (4, 2), (6, 4)), 1.0, "x").value == 2.0

    def test_a_clock_that_stood_still_gives_no_cpu_ratio(self):
        assert arithmetic.ratio("step", [(Seconds(1.0, 0.0), Seconds(1.0, 0.0))], 1.0, "x").cpu is None

    def test_rejects_no_pairs(self):
        with pytest.raises(ValueError, match="pairs must hold at least one timing; got none"):
            arithmetic.ratio("step", [], 1.0, "x")


class TestMeasure:
    @pytest.mark.parametrize(("value", "holds"), [(0.99, True), (1.0, True), (1.01, False), (math.nan, False)])
    def test_bar(self, value, holds):
        found = measure(value)
        assert found.holds is holds
        assert ("DOES NOT HOLD" in found.line()) is not holds
        assert "made up" in found.line()

    def test_line_shows_value_spread_cpu_and_bar(self):
        line = Measure("step", 1.05, 1.01, 1.2, 1.04, 1.1, "x", "UNet").line()
        assert line == "step: 1.050 x [1.010, 1.200], CPU 1.040; bar 1.100: holds (UNet)"


class TestInterleave:
    def test_alternates_who_is_first_after_one_untimed_call_of_each(self):
        calls: list[str] = []
        found = arithmetic.interleave(lambda: calls.append("a"), lambda: calls.append("b"), 3)
        assert "".join(calls) == "ababbaab"
        assert len(found) == 3

    def test_ours_comes_first_in_every_pair(self, monkeypatch):
        ours, theirs = object, int
        monkeypatch.setattr(arithmetic, "timed", lambda work: Seconds(1.0 if work is ours else 2.0, 0.0))
        assert {(a.wall, b.wall) for a, b in arithmetic.interleave(ours, theirs, 4)} == {(1.0, 2.0)}

    def test_stops_at_its_budget_but_not_before_three_pairs(self):
        assert len(arithmetic.interleave(int, int, 50, budget_s=0.0)) == arithmetic.MIN_PAIRS


@pytest.mark.slow
class TestSections:
    """Each runs, and measures what it says."""

    def test_training_steps(self):
        found = list(training_step.training_steps([(4, 8)], side_3d=16, side_2d=32, batch_2d=2, num_pairs=1))
        assert [m.name for m in found] == ["step, 3-D UNet", "step, 2-D ResNet-18"]
        assert [m.bar for m in found] == [1.10, 1.20]
        assert all(0 < m.value < math.inf for m in found)

    def test_a_step_trains_both_sides_and_every_part(self):
        """Were the loss or the optimiser left out, parameters would stay as they were."""
        torch.manual_seed(0)
        models = []

        def backbone():
            models.append(training_step.UNetBackbone(3, 1, 2, (4, 8)))
            return models[-1]

        image = {"image": torch.randn(2, 1, 16, 16, 16)}
        steps = training_step._steps(backbone, image, lambda logits: logits.square().mean())
        before = [[p.clone() for p in model.parameters()] for model in models]
        for step in steps:
            step()
        for old, model in zip(before, models, strict=True):
            moved = [not torch.equal(a, b) for a, b in zip(old, model.parameters(), strict=True)]
            assert sum(moved) > len(moved) / 2

    def test_stand_in_decodes_its_own_tokens(self):
        net = training_step.ResNetStandIn(3, 8)
        tokens, features = net.encode({"image": torch.randn(2, 3, 32, 32)})
        assert tokens.shape[2] == net.width
        assert net.decode(tokens, features, {}).shape == (2, 8)

    def test_tokenizer(self):
        (found,) = cost.tokenizer((4, 8), side=16, num_pairs=1)
        assert found.bar == 0.03
        assert found.value > 0

    def test_low_bands(self):
        found = list(cost.low_bands([16, 20], num_pairs=1))
        assert [m.name for m in found] == ["low_band 16^3", "low_band 20^3", "low_band agrees"]
        assert 0 < found[-1].value < 1e-5

    def test_low_bands_notice_a_difference(self, monkeypatch):
        monkeypatch.setattr(cost, "low_band", lambda image, keep: cost.cropped(image, keep) + 1e-3)
        found = list(cost.low_bands([16], num_pairs=1))[-1]
        assert not found.holds
        assert found.value == pytest.approx(1e-3, rel=1e-3)

    def test_bank(self):
        """16 entries of 8 sites: filled before the first timed round, and bounded ever after."""
        (found,) = cost.bank(size=16, dim=4, num_sites=8, num_rounds=2)
        assert found.what.startswith("16 x 4: ")
        assert (found.unit, found.bar) == ("s", 0.050)

    def test_bank_round_uses_what_was_offered(self):
        knowledge, offered = cost.KnowledgeBank(4, max_size=16), {}
        for number in range(2):
            cost._bank_round(knowledge, ["a", "b", "c"], torch.eye(4)[:3] + 0.1 * number, offered, number)
        assert sorted(offered) == ["a", "b", "c"]
        assert all(offered.values())
        assert any(entry.hits > 0 for entry in knowledge.entries)


class TestFlareRounds:
    def test_rounds_are_paired_within_a_repeat(self):
        """Repeat 2 ran on a machine twice as slow; both say 1.1, and 1.5 for CPU."""
        first = {"fedavg": [(1.1, 1.5), (2.2, 3.0)], "stock": [(1.0, 1.0), (2.0, 2.0)]}
        second = {name: [(2 * wall, 2 * cpu) for wall, cpu in rounds] for name, rounds in first.items()}
        found = cost.round_ratio("fedavg", [first, second])
        assert found.value == pytest.approx(1.1)
        assert found.cpu == pytest.approx(1.5)
        assert found.holds
        assert "4 pairs" in found.what

    def test_rounds_of_ours_end_with_their_first_report(self):
        log = "".join(
            f"2026-01-01 00:00:{second},000 - rounds - INFO - round {number}/3  {site}  loss 1.0000  dice\n"
            for second, number, site in [
                ("10", 1, "site-1"),
                ("11", 1, "site-2"),
                ("14", 2, "site-2"),
                ("15", 2, "site-1"),
                ("20", 3, "site-1"),
            ]
        )
        log += "2026-01-01 00:00:30,000 - rounds - WARNING - round 4/4  site-1  missing: timeout\n"
        assert walls(flare_round.boundaries(log, flare_round.OURS)) == [4.0, 6.0]

    def test_rounds_of_stock_leave_out_round_0(self):
        log = "".join(
            f"2026-01-01 00:00:{second},500 - FedAvg - INFO - [a=b]: \n{line * 9}\n   {what}.   \n{line * 9}\n\n"
            for second, what, line in [
                ("01", "Start FedAvg", "="),
                ("10", "Round 0 started", "-"),
                ("30", "Round 1 started", "-"),
                ("35", "Finished FedAvg", "="),
            ]
        )
        assert walls(flare_round.boundaries(log, flare_round.STOCK)) == [5.0]

    def test_cpu_is_interpolated_between_samples(self):
        """2 CPU seconds per second until 10, 1 after: from 9 to 11 that is 2 + 1."""
        samples = [(0.0, 0.0), (10.0, 20.0), (20.0, 30.0)]
        assert flare_round.spent([9.0, 11.0, 13.0], samples) == [(2.0, 3.0), (2.0, 2.0)]
        assert flare_round.spent([9.0, 11.0], []) == [(2.0, 0.0)]

    @pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc on this system")
    def test_cpu_counts_descendants(self):
        """A shell that waits for a busy child spends nothing itself."""
        busy = "import time\nwhile time.process_time() < 0.5: pass\nprint('done', flush=True)\ninput()"
        command = ["sh", "-c", f'"$0" -c "{busy}"; true', sys.executable]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as shell:
            shell.stdout.readline()
            assert processes.cpu_seconds(shell.pid) >= 0.45
            shell.communicate(b"\n")

    def test_stock_job_polls_as_ours_and_runs_nvflares_own_controller(self, tmp_path, monkeypatch):
        monkeypatch.setattr(flare_round, "_spec", lambda *_: {"dims": 3})
        jobs = [flare_round._job(run, ROOT / "jobs/seg_fets", tmp_path, tmp_path, 3) for run in ("fedavg", "stock")]
        for name in ("config_fed_client.json", "config_fed_server.json"):
            ours, stock = (json.loads((job / "app/config" / name).read_text()) for job in jobs)
            changed = {key for key in ours if ours[key] != stock[key]}
            assert changed <= {"executors", "task_result_filters", "workflows", "components"}
        assert stock["workflows"][0]["path"] == "nvflare.app_common.workflows.fedavg.FedAvg"
        assert stock["workflows"][0]["args"]["num_rounds"] == 3
        (executor,) = json.loads((jobs[1] / "app/config/config_fed_client.json").read_text())["executors"]
        assert executor["executor"]["path"] == f"{stock_fedavg.__name__}.{stock_fedavg.StockTrainer.__name__}"
        network = stock["components"][0]["args"]["model"]["path"]
        assert network == f"{stock_fedavg.__name__}.{stock_fedavg.Network.__name__}"
        assert json.loads((jobs[0] / "app/config/experiment.json").read_text())["method"] == {"name": "fedavg"}

    def test_data_are_a_few_cases_of_every_split(self, tmp_path):
        root = flare_round.demo_data(tmp_path)
        for site in flare_round.SITES:
            content = json.loads((root / site / "dataset.json").read_text())
            assert {split: len(content[split]) for split in flare_round.CASES} == flare_round.CASES

    def test_says_why_a_run_failed(self, tmp_path, monkeypatch):
        script = tmp_path / "nvflare"
        script.write_text("#!/bin/sh\necho first\necho the reason\nexit 3\n")
        script.chmod(0o700)
        monkeypatch.setattr(flare_round, "_nvflare", lambda: str(script))
        with pytest.raises(ValueError, match=r"'job' must finish its rounds; exit code 3: the reason"):
            flare_round._simulate(tmp_path / "job", tmp_path, tmp_path / "ws", flare_round.OURS)

    def test_says_that_a_run_took_too_long(self, tmp_path, monkeypatch):
        script = tmp_path / "nvflare"
        script.write_text("#!/bin/sh\nexec sleep 60\n")
        script.chmod(0o700)
        monkeypatch.setattr(flare_round, "_nvflare", lambda: str(script))
        monkeypatch.setattr(flare_round, "TIMEOUT_S", 0.2)
        with pytest.raises(ValueError, match=r"'job' must end within 0.2 s; it did not"):
            flare_round._simulate(tmp_path / "job", tmp_path, tmp_path / "ws", flare_round.OURS)

    def test_rejects_a_folder_without_a_job(self, tmp_path):
        with pytest.raises(ValueError, match="job must be a job folder"):
            flare_round.check(tmp_path)


@pytest.mark.slow
class TestRun:
    @pytest.fixture
    def tiny(self, monkeypatch):
        for name in ("training_steps", "low_bands", "bank"):
            monkeypatch.setattr(cost, name, lambda: iter(()))
        monkeypatch.setattr(cost, "tokenizer", lambda: iter([measure(0.5), measure(2.0)]))

    def test_prints_and_writes(self, tiny, tmp_path: Path, capsys):
        found = cost.run(tmp_path / "out", with_flare=False)
        assert [m.holds for m in found] == [True, False]
        assert capsys.readouterr().out.count("\n") == 2
        record = json.loads((tmp_path / "out/cost.json").read_text())
        assert [m["holds"] for m in record["measures"]] == [True, False]
        assert "**does not hold**" in (tmp_path / "out/cost.md").read_text()

    def test_threads_are_as_asked_and_then_as_before(self, monkeypatch, tiny):
        seen: list[int] = []
        monkeypatch.setattr(cost, "bank", lambda: iter([seen.append(torch.get_num_threads()) or measure(1.0)]))
        before = torch.get_num_threads()
        cost.run(None, with_flare=False, threads=before + 1)
        assert (seen, torch.get_num_threads()) == ([before + 1], before)

    def test_rejects_no_threads(self):
        with pytest.raises(ValueError, match="threads must be at least 1; got 0"):
            cost.run(None, with_flare=False, threads=0)
