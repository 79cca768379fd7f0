"""The page is read as a reader would: its tables by an HTML parser, never by the code that wrote it."""

import json
import math
import re
from html.parser import HTMLParser

import pytest

from omnifm.report.run import report, write_report

HOSTILE = "<script src='http://x'>alert(1)</script>\"' onload=x $\\frac{"
FETCHES = r"<(script|link|img|iframe)[^>]+(src|href)=[\"']?https?:"  # the acceptance check's own expression
PNG = b"\x89PNG\r\n\x1a\n not really"
VOID = {"meta", "img", "use", "path"}
CHECKPOINTS = {
    "before": {"round": 2, "last": False, "metric": "dice", "score": 0.61},
    "after": {"round": 3, "last": True, "metric": "dice", "score": 0.7},
}


class Page(HTMLParser):
    """Tables as rows of cell texts, all tags, all ids, and whether every tag is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.tags, self.ids, self.open, self.words = [], [], [], [], []
        self.feed(text)
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for key, value in attrs if key == "id"]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for key, value in attrs if key == "id"]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)
            if {"td", "th"} & set(self.open):
                self.rows[-1][-1] += data

    def row(self, *start):
        return next(row for row in self.rows if tuple(row[: len(start)]) == start)


def scores_of(page, site):
    """The site's row of the table of scores."""
    rows = [row for row in page.rows if row[0] in (site, "Site")]
    start = next(index for index, row in enumerate(rows) if row[:2] == ["Site", "Dice"])
    return next(row[1:] for row in rows[start:] if row[0] == site)


def entry(number, sites, missing=(), bank=True):
    row = {
        "train_loss": 1 / number,
        "metrics": {"dice": 0.6},
        "before": {"dice": 0.5},
        "num_samples": 9,
        "seconds": 30.0,
        "bytes_up": 1_500_000,
        "bytes_down": 2_000_000,
    }
    state = {
        "size": 4,
        "effective_rank": 3.25,
        "mean_cosine": 0.9997,
        "centred_rank": 2.25,
        "centred_cosine": -0.1,
        "alike": False,
        "by_site": {"a": 3, "b": 1},
        "by_modality": {"MR": 4},
    }
    return {
        "round": number,
        "sites": dict.fromkeys(sites, row),
        "missing": dict.fromkeys(missing, "too late"),
        "bank": state if bank else {},
    }


def summary(scores=None, **changes):
    """Sites `a` (dice 0.4 -> 0.7) and `b` (0.8 -> 0.6, the worst); b missed round 2; hd95 is better when lower."""
    scores = scores or {"a": ((0.4, 0.7), (9.0, 5.0)), "b": ((0.8, 0.6), (4.0, 3.0))}
    sites = {
        name: {
            "num_train": 1200,
            "num_validation": 3,
            "num_test": 4,
            "num_refused": 2,
            "modalities": {"MR": 7, "CT": 3},
            "metrics": {
                metric: {"before": x, "after": y, "support": 4, "undefined": 1}
                for metric, (x, y) in zip(("dice", "hd95_mm"), pairs, strict=True)
            },
        }
        for name, pairs in scores.items()
    }
    if "a" in sites:
        sites["a"] |= {"source": "site", "split_by": "image", "statistics": {"checkpoints": CHECKPOINTS}}
    if "b" in sites:
        sites["b"] |= {"source": "demo", "split_by": "patient"}
    whole = {
        "schema": 1,
        "job": "seg_fets",
        "task": "segmentation",
        "method": "omnifm",
        "data": "fets",
        "seed": 7,
        "settings": {"train": {"lr": 0.01, "preset": None, "warm_start": False}},
        "finished": "2026-12-01 05:30 UTC",
        "versions": {"torch": "2.13.0"},
        "status": "SUBSET",
        "reason": "sites did not: b",
        "rounds": {"planned": 3, "completed": 3},
        "partition": {"hash": "aa11", "shared": 123456, "personal": 789, "buffers": 5, "frozen": 0},
        "init_hash": "bb22",
        "final_hash": "cc33",
        "data_source": "site",
        "sites": sites,
        "aggregate": {
            "dice": {"mean": 0.65, "std": 0.05, "worst": 0.6, "worst_site": "b"},
            "hd95_mm": {"mean": 4.0, "std": 1.0, "worst": 5.0, "worst_site": "a"},
        },
        "history": [entry(1, "ab"), entry(2, "a", "b"), entry(3, "ab")],
    }
    return whole | changes


@pytest.fixture
def draw(tmp_path):
    """Write a report; return (page, text)."""

    def write(content, pictures=None):
        json.dumps(content)
        write_report(content, tmp_path / "out" / "report.html", pictures or {})
        text = (tmp_path / "out" / "report.html").read_text()
        return Page(text), text

    return write


class TestNumbers:
    """What the page says is what the summary says."""

    def test_headline(self, draw):
        page, _ = draw(summary())
        for words in (
            "seg_fets SUBSET",
            "task segmentation · data of the sites · method omnifm · seed 7 · finished 2026-12-01 05:30 UTC",
            "SUBSET: sites did not: b",
            "Rounds 3 of 3",
            "Sites with test scores 2 of 2",
            "Cases 2,414 2,400 train, 6 validation, 8 test, 4 refused",
            "Mean Dice, test 0.600 → 0.650",
            "Worst Dice, test 0.600 b",
            "Sent by sites 7.50 MB",
            "Sent to sites 10.00 MB",
            "Time at sites 2.5 min 90.0 s",
        ):
            assert words in page.text

    def test_sites(self, draw):
        page, _ = draw(summary())
        assert page.row("a") == ["a", "own", "1,200", "3", "4", "2", "MR 7, CT 3", "pictures; patients unknown"]
        assert page.row("b") == ["b", "synthetic demo", "1,200", "3", "4", "2", "MR 7, CT 3", "patients"]

    def test_scores(self, draw):
        page, _ = draw(summary())
        assert scores_of(page, "a") == [
            "0.400 → 0.700+0.300, n 4, 1 undefined",
            "9.000 → 5.000-4.000, n 4, 1 undefined, worst site",
        ]
        assert scores_of(page, "b") == [
            "0.800 → 0.600-0.200, n 4, 1 undefined, worst site",
            "4.000 → 3.000-1.000, n 4, 1 undefined",
        ]

    def test_across_sites(self, draw):
        page, _ = draw(summary())
        assert page.row("Dice") == ["Dice", "0.650", "0.050", "0.600", "b"]
        assert page.row("HD95 (mm)") == ["HD95 (mm)", "4.000", "1.000", "5.000", "a"]

    @pytest.mark.parametrize(("units", "name"), [("ab", "HD95 (pixels)"), ("a", "HD95 (pixels or mm)")])
    def test_pixels_are_called_pixels_where_no_spacing_is_known(self, draw, units, name):
        content = summary()
        for site in units:
            content["sites"][site]["units"] = {"hd95_mm": "pixels"}
        page, _ = draw(content)
        assert page.row(name)
        assert page.row("Site", "Dice") == ["Site", "Dice", name]

    def test_which_model_was_tested(self, draw):
        page, _ = draw(summary())
        assert page.row("a", "round 2") == [
            "a",
            "round 2",
            "0.610",
            "additional training after the last round",
            "0.700",
        ]
        assert ["b", "round 2"] not in [row[:2] for row in page.rows]  # an older site does not say it

    def test_settings(self, draw):
        page, _ = draw(summary())
        assert page.row("lr") == ["lr", "0.01"]
        assert page.row("preset") == ["preset", "–"]
        assert page.row("warm_start") == ["warm_start", "false"]

    def test_unknown_patients_are_a_warning(self, draw):
        assert "Patients unknown: a: pictures of one patient may be in training and in test" in draw(summary())[0].text
        assert "Patients unknown" not in draw(summary(data_source="demo"))[0].text

    def test_gains_are_coloured_by_the_direction_that_the_worst_site_tells(self, draw):
        _, text = draw(summary())
        assert re.findall(r'<span class="(up|down)">([^<]+)<', text) == [
            ("up", "+0.300"),
            ("up", "-4.000"),
            ("down", "-0.200"),
            ("up", "-1.000"),
        ]

    def test_direction_stays_open_where_all_sites_are_equal(self, draw):
        equal = {"mean": 0.7, "std": 0.0, "worst": 0.7, "worst_site": "a"}
        _, text = draw(summary({"a": ((0.4, 0.7), (1.0, 2.0))}, aggregate={"dice": equal}))
        assert not re.findall(r'class="(up|down)"', text)
        assert "<em>" not in text  # one site is not the worst of several

    def test_missing_replies_are_grouped(self, draw):
        rounds = [entry(1, "a", "b"), entry(2, "a", "b"), entry(3, "ab"), entry(4, "a", "b")]
        assert draw(summary(history=rounds))[0].row("b", "1–2, 4") == ["b", "1–2, 4", "too late"]

    def test_traffic(self, draw):
        page, _ = draw(summary())
        assert page.row("3", "b") == ["3", "b", "9", "0.333", "2.00 MB", "1.50 MB", "30.0 s"]
        assert ["2", "b"] not in [row[:2] for row in page.rows]

    def test_provenance(self, draw):
        page, _ = draw(summary())
        assert [page.row(key)[1] for key in ("shared", "personal", "buffers", "frozen")] == ["123,456", "789", "5", "0"]
        assert [page.row(key)[1] for key in ("partition", "shared, start", "shared, end")] == ["aa11", "bb22", "cc33"]
        assert "torch 2.13.0" in page.text

    def test_bank(self, draw):
        page, _ = draw(summary())
        for words in ("Prototypes, now 4", "Effective rank, centred, now 2.250", "Mean cosine, centred, now -0.100"):
            assert words in page.text
        assert page.row("a", "3")
        assert page.row("MR", "4")
        assert "Technical note" not in page.text  # its uncentred cosine is 0.9997, as alignment makes it

    @pytest.mark.parametrize(("alike", "is_said"), [((True, True), True), ((True, False), False)])
    def test_prototypes_that_look_alike_at_the_end_are_a_calm_note(self, draw, alike, is_said):
        history = [entry(number, "ab") for number in (1, 2)]
        for past, state in zip(history, alike, strict=True):
            past["bank"]["alike"] = state
        page, text = draw(summary(history=history))
        note = "Technical note: the spectral prototypes of all sites look alike, so retrieval adds nothing here."
        assert (f"{note} The scores above remain valid." in page.text) == is_said
        assert 'class="note severe"' not in text

    def test_an_old_bank_is_drawn_as_it_was_measured(self, draw):
        history = [entry(1, "ab")]
        history[0]["bank"] = {"size": 4, "effective_rank": 1.2, "mean_cosine": 0.9, "by_site": {}, "by_modality": {}}
        page, _ = draw(summary(history=history))
        assert "Effective rank, not centred, now 1.200" in page.text
        assert "Technical note" not in page.text

    def test_curves_say_their_last_values(self, draw):
        labels = [attrs["aria-label"] for tag, attrs in draw(summary())[0].tags if tag == "svg"]
        assert labels[0] == "Training loss over 3 rounds; last values: a 0.333, b 0.333"
        assert labels[2] == "Validation Dice, after local training over 3 rounds; last values: a 0.600, b 0.600"
        assert len(labels) == 6  # three curves, three of the bank


class TestPage:
    def test_fetches_nothing(self, draw):
        page, text = draw(summary(data_source="demo"), {"a case": PNG})
        assert not re.search(FETCHES, text)
        assert not re.search(r"url\((?!#)|@import|@font-face", text)
        assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "form", "a"} == set()
        policy = [attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
        assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]

    def test_hostile_words_stay_words(self, draw):
        history = [entry(1, ["a", HOSTILE]), {**entry(2, ["a"]), "missing": {HOSTILE: HOSTILE}}]
        history[0]["bank"] |= {"by_site": {HOSTILE: 1}, "by_modality": {HOSTILE: 1}}
        content = summary({HOSTILE: ((0.4, 0.7), (9.0, 5.0)), "a": ((0.8, 0.6), (4.0, 3.0))}, history=history)
        for key in ("job", "task", "method", "status", "reason", "data", "init_hash", "data_source", "finished"):
            content[key] = HOSTILE
        content["settings"] = {HOSTILE: {HOSTILE: HOSTILE}}
        content["sites"][HOSTILE] |= {"source": HOSTILE, "split_by": HOSTILE, "units": {"dice": HOSTILE}}
        content["versions"] = {HOSTILE: HOSTILE}
        content["sites"][HOSTILE]["modalities"] = {HOSTILE: 1}
        content["aggregate"]["dice"]["worst_site"] = HOSTILE
        page, text = draw(content, {HOSTILE: PNG})
        assert "<script" not in text
        assert not any("onload" in attrs for _, attrs in page.tags)
        assert page.row(HOSTILE, "2") == [HOSTILE, "2", HOSTILE]
        assert page.row(f"Dice ({HOSTILE} or mm)")[-1] == HOSTILE

    def test_every_picture_and_drawing_has_words(self, draw):
        page, _ = draw(summary(), {"a, case 1": PNG})
        assert all(attrs["aria-label"] for tag, attrs in page.tags if tag == "svg")
        assert [attrs["alt"] for tag, attrs in page.tags if tag == "img"] == ["a, case 1"]

    def test_ids_are_unique_and_resolve(self, draw):
        page, text = draw(summary())
        assert len(page.ids) == len(set(page.ids)) > 0
        assert set(re.findall(r'(?:url\(|href=")#([^)"]+)', text)) <= set(page.ids)

    def test_same_summary_same_bytes(self, draw):
        assert draw(summary())[1] == draw(summary())[1]

    def test_demo_data_are_announced(self, draw):
        assert "SYNTHETIC DEMO DATA" in draw(summary(data_source="demo"))[0].text
        assert "SYNTHETIC" not in draw(summary())[0].text

    def test_without_pictures_it_says_where_they_are(self, draw):
        assert "Pictures of real cases stay in each site's state folder" in draw(summary())[0].text
        assert "Pictures of real cases" not in draw(summary(), {"a": PNG})[0].text

    def test_a_large_run_stays_small(self, draw):
        names = [f"site-{number}" for number in range(30)]
        history = [entry(number, names) for number in range(1, 61)]
        for past in history:
            for index, site in enumerate(names):
                past["sites"][site] = {**past["sites"][site], "train_loss": math.sin(index + past["round"])}
        page, text = draw(summary(history=history))
        assert len(text) < 400_000
        assert "1,400 more rows are in summary.json." in page.text
        assert page.row("1", "site-2")  # natural order: site-2 before site-10
        order = [row[1] for row in page.rows if row[0] == "1" and len(row) == 7]
        assert order == names


class TestEdges:
    def test_one_round_of_one_site_without_bank(self, draw):
        page, _ = draw(summary({"a": ((0.4, 0.7), (9.0, 5.0))}, history=[entry(1, "a", bank=False)]))
        assert "Knowledge bank" not in page.text
        assert "None in any training round." in page.text
        assert "0.72" not in page.text  # rounds are whole numbers on the axis too

    @pytest.mark.parametrize("nothing", [None, math.nan, math.inf])
    def test_undefined_scores_are_dashes(self, draw, nothing):
        page, _ = draw(summary({"a": ((None, nothing), (nothing, 1.0)), "b": ((0.8, 0.6), (4.0, 3.0))}))
        assert scores_of(page, "a") == ["– → –n 4, 1 undefined", "– → 1.000n 4, 1 undefined, worst site"]

    def test_a_mean_over_other_sites_than_before_says_so(self, draw):
        scores = {"a": ((0.4, None), (9.0, 5.0)), "b": ((0.8, 0.6), (4.0, 3.0))}
        assert "over different sites" in draw(summary(scores))[0].text
        assert "over different sites" not in draw(summary())[0].text

    def test_failed_before_round_one(self, draw):
        page, _ = draw(
            summary(
                status="FAILED",
                reason="min_sites",
                sites={},
                aggregate={},
                history=[],
                rounds={"planned": 3, "completed": 0},
                init_hash="",
            )
        )
        for words in ("FAILED: min_sites", "No round was completed", "No site has test scores", "No reply was"):
            assert words in page.text

    def test_failed_after_rounds_keeps_their_curves(self, draw):
        page, _ = draw(summary(status="FAILED", reason="no site returned", sites={}, aggregate={}))
        assert "Validation Dice, after local training" in page.text
        assert page.row("a", "no test scores") == ["a", "no test scores", *["–"] * 6]

    def test_rounds_without_any_reply(self, draw):
        history = [entry(1, "", "ab"), entry(2, "", "ab")]
        page, _ = draw(summary(status="FAILED", sites={}, aggregate={}, history=history))
        assert page.row("a", "1–2", "too late")

    def test_history_of_the_bare_contract(self, draw):
        """`before` in the history, `frozen` and `data` are ours; the contract does without them."""
        content = summary()
        for key in ("settings", "finished", "data"):
            del content[key]
        del content["partition"]["frozen"]
        for site in content["sites"].values():
            for key in ("source", "split_by", "statistics"):
                site.pop(key, None)
        for past in content["history"]:
            for row in past["sites"].values():
                row.pop("before", None)
        assert "Mean Dice, test 0.600 → 0.650" in draw(content)[0].text


class TestReport:
    def test_finds_the_summary_of_a_run(self, tmp_path):
        for folder in (tmp_path, tmp_path / "results"):
            folder.mkdir(exist_ok=True)
            (folder / "summary.json").write_text(json.dumps(summary(job=f"job-{folder.name}")))
        assert report(tmp_path) == tmp_path / "results" / "report.html"
        assert "job-results" in (tmp_path / "results" / "report.html").read_text()
        assert report(tmp_path / "summary.json") == tmp_path / "report.html"
        assert report(tmp_path / "results") == tmp_path / "results" / "report.html"

    def test_keeps_the_pictures_of_the_run(self, tmp_path):
        (tmp_path / "summary.json").write_text(json.dumps(summary()))
        write_report(summary(), tmp_path / "report.html", {"a <1>": PNG, "b": PNG * 2})
        first = (tmp_path / "report.html").read_bytes()
        report(tmp_path)
        assert (tmp_path / "report.html").read_bytes() == first

    def test_refuses_a_missing_file(self, tmp_path):
        with pytest.raises(ValueError, match=r"path must be a .* or a run directory that holds one; it is neither"):
            report(tmp_path)

    @pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"", b"[" * 100_000])
    def test_refuses_what_is_not_json(self, tmp_path, content):
        (tmp_path / "summary.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"^summary must be JSON; got something else$"):
            report(tmp_path)

    @pytest.mark.parametrize("content", [{"schema": 2}, {}, [], 3, {"schema": "\n" * 99}])
    def test_refuses_another_schema(self, tmp_path, content):
        (tmp_path / "summary.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"^summary must have schema 1; got '[^/]*$"):
            report(tmp_path)

    def test_refuses_a_lacking_key(self, tmp_path):
        content = summary()
        del content["history"]
        (tmp_path / "summary.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match="lacks history"):
            report(tmp_path)

    @pytest.mark.parametrize("wrong", [{"history": [{}]}, {"sites": []}, {"partition": 3}, {"rounds": None}])
    def test_refuses_a_wrong_part_and_leaves_the_old_report(self, tmp_path, wrong):
        (tmp_path / "report.html").write_text("old")
        (tmp_path / "summary.json").write_text(json.dumps(summary(**wrong)))
        with pytest.raises(ValueError, match=r"^summary must follow schema 1; got [^/]*$"):
            report(tmp_path)
        assert (tmp_path / "report.html").read_text() == "old"
