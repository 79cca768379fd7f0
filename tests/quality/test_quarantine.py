import json
from pathlib import Path

import pytest

from omnifm.data.datalist import Datalist
from omnifm.data.refusal import RefusedImage
from omnifm.quality.quarantine import Refusal, check_cases, write_quarantine


def datalist(training: int, validation: int = 0, test: int = 0) -> Datalist:
    sizes = {"training": training, "validation": validation, "test": test}
    splits = {name: tuple({"origin": (name, i)} for i in range(size)) for name, size in sizes.items()}
    return Datalist(name="x", modality={"0": "MR"}, labels={}, root=Path(), source="site", **splits)


def refuse(*bad: tuple[str, int]):
    def read(item):
        if item["origin"] in bad:
            raise RefusedImage("truncated", "ends early")

    return read


class TestCheckCases:
    def test_puts_refused_cases_aside_and_keeps_the_rest(self):
        kept, refusals = check_cases(datalist(30, 5, 5), refuse(("training", 3), ("test", 4)))
        assert refusals == (
            Refusal("training", 3, "truncated", "ends early"),
            Refusal("test", 4, "truncated", "ends early"),
        )
        assert [len(split) for split in kept.splits().values()] == [29, 5, 4]
        assert {"origin": ("training", 3)} not in kept.training

    def test_reads_every_case_once(self):
        seen = []
        check_cases(datalist(2, 1, 1), lambda item: seen.append(item["origin"]))
        assert seen == [("training", 0), ("training", 1), ("validation", 0), ("test", 0)]

    def test_five_percent_pass_and_more_does_not(self):
        check_cases(datalist(40), refuse(("training", 0), ("training", 1)))
        with pytest.raises(
            ValueError, match=r"3 of 40 cases \(7\.5 %\) cannot be used; at most 5 % may: 3 truncated\. Repair"
        ):
            check_cases(datalist(40), refuse(*[("training", i) for i in range(3)]))

    def test_a_small_site_may_lose_one_case_but_not_two(self):
        check_cases(datalist(5), refuse(("training", 0)))
        with pytest.raises(ValueError, match="2 of 5 cases"):
            check_cases(datalist(5), refuse(("training", 0), ("training", 1)))

    def test_zero_allows_none(self):
        with pytest.raises(ValueError, match="1 of 5 cases"):
            check_cases(datalist(5), refuse(("training", 0)), 0.0)

    def test_refuses_to_go_on_without_training_cases(self):
        with pytest.raises(ValueError, match="'training' must keep at least one case; all 1 were refused"):
            check_cases(datalist(1, 3, 3), refuse(("training", 0)))

    @pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
    def test_rejects_fraction(self, fraction):
        with pytest.raises(ValueError, match=r"max_refused_fraction must be in \[0, 1\]; got"):
            check_cases(datalist(5), refuse(), fraction)

    def test_other_errors_are_ours_and_surface(self):
        with pytest.raises(ZeroDivisionError):
            check_cases(datalist(5), lambda item: 1 / 0)


class TestWriteQuarantine:
    def test_round_trip_leaves_one_file(self, tmp_path):
        path = tmp_path / "new" / "quarantine.json"
        for message in ("first", "second"):
            write_quarantine(path, [Refusal("test", 4, "truncated", message)])
        row = {"split": "test", "position": 4, "reason": "truncated", "message": "second"}
        assert json.loads(path.read_text()) == {"refused": [row]}
        assert [file.name for file in path.parent.iterdir()] == ["quarantine.json"]

    def test_failure_leaves_the_old_file(self, tmp_path):
        path = tmp_path / "quarantine.json"
        write_quarantine(path, [])
        with pytest.raises(TypeError):
            write_quarantine(path, [Refusal("test", 4, "truncated", object())])  # type: ignore[arg-type]
        assert json.loads(path.read_text()) == {"refused": []}
        assert len(list(tmp_path.iterdir())) == 1
