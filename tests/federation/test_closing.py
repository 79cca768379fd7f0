"""The last lines of a run: status, every site's score, and where the report lies."""

from omnifm.federation.closing import closing_lines


def summary(**changes):
    def site(before, after):
        return {"metrics": {"dice": {"before": before, "after": after, "support": 4, "undefined": 0}}}

    return {
        "status": "COMPLETE",
        "reason": None,
        "job": "seg_fets",
        "task": "segmentation",
        "method": "fedavg",
        "rounds": {"planned": 2, "completed": 2},
        "sites": {"site-10": site(0.25, 0.5), "site-2": site(None, 0.75)},
        "aggregate": {"dice": {"mean": 0.625, "std": 0.1, "worst": 0.5, "worst_site": "site-10"}},
    } | changes


def test_a_line_for_every_site_and_the_way_to_the_report(tmp_path):
    (tmp_path / "report.html").touch()
    assert closing_lines(summary(), tmp_path) == [
        "COMPLETE: seg_fets, method fedavg, 2 rounds; all sites took part in all rounds",
        "Test dice (higher is better), shared model as received -> after one more training at the site:",
        "  site-2   – -> 0.750  (4 cases)",
        "  site-10  0.250 -> 0.500  (4 cases)  (worst site)",
        "  mean of 2 sites: 0.625",
        f"Report:  {tmp_path}/report.html",
        f"Summary: {tmp_path}/summary.json",
    ]


def test_a_run_without_a_result_says_why(tmp_path):
    failed = summary(status="FAILED", reason="min_sites must describe their data", sites={}, aggregate={})
    lines = closing_lines(failed, tmp_path)
    assert lines[:2] == [
        "FAILED: seg_fets, method fedavg, 2 rounds; there is no result",
        "Reason: min_sites must describe their data",
    ]
    assert not any("report.html" in line for line in lines)
