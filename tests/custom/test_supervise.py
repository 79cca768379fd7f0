"""The supervisor with a stand-in for the server: which jobs it submits again, and which it does not."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from nvflare.fuel.flare_api.api_spec import AuthorizationError, JobNotFound, NoConnection

from omnifm_flare import supervise
from omnifm_flare.supervise import Supervisor, connector


class Server:
    """Each attempt is (FLARE's statuses in order, the run's status in its results or None without results)."""

    def __init__(self, *attempts, lost=(), away=0):
        self.attempts, self.lost, self.away = attempts, lost, away
        self.submitted, self.aborted, self.looks = [], [], 0

    def connect(self):
        if self.away:
            self.away -= 1
            raise NoConnection("no route to /data/secret")
        return self

    def close(self):
        pass

    def submit_job(self, job, token):
        self.submitted.append(token)
        self.looks = 0
        return f"id-{len(self.submitted)}"

    def get_job_meta(self, job_id):
        statuses, _ = self.attempts[len(self.submitted) - 1]
        self.looks += 1
        status = statuses[min(self.looks, len(statuses)) - 1]
        if isinstance(status, Exception):
            raise status
        return {"status": status}

    def get_system_info(self):
        jobs = [] if len(self.submitted) in self.lost else [f"id-{len(self.submitted)}"]
        return SimpleNamespace(
            client_info=[SimpleNamespace(name="a")], job_info=[SimpleNamespace(job_id=j) for j in jobs]
        )

    def abort_job(self, job_id):
        self.aborted.append(job_id)
        raise RuntimeError("INTERNAL_ERROR")

    def download_job_result(self, job_id, folder):
        outcome = self.attempts[len(self.submitted) - 1][1]
        if outcome is None:
            raise RuntimeError("nothing there")
        results = Path(folder) / "workspace/results"
        results.mkdir(parents=True)
        (results / "summary.json").write_text(json.dumps({"status": outcome}))


RUNS, BROKE = ["SUBMITTED", "RUNNING", "RUNNING"], "FINISHED:EXECUTION_EXCEPTION"


def supervise_(server, tmp_path, attempts=3):
    said = []
    done = Supervisor(server.connect, said.append, poll_s=0.01).run(tmp_path / "job", attempts, tmp_path / "results")
    return done, said


class TestSupervisor:
    @pytest.mark.parametrize("outcome", ["COMPLETE", "SUBSET"])
    def test_a_run_that_is_done_is_not_submitted_again_whatever_flare_says(self, tmp_path, outcome):
        server = Server(([*RUNS, "FINISHED:ABNORMAL"], outcome))
        done, said = supervise_(server, tmp_path)
        assert done
        assert said == [
            "attempt 1 of 3: job submitted as id-1",
            "id-1: SUBMITTED; it starts when enough hospitals are connected and free (connected now: 1)",
            "id-1: RUNNING",
            "id-1: FINISHED:ABNORMAL",
            f"id-1: FINISHED:ABNORMAL; the run is {outcome}",
        ]

    def test_a_failed_job_is_submitted_again(self, tmp_path):
        server = Server(([*RUNS, BROKE], None), ([*RUNS, BROKE], "FAILED"), ([*RUNS, "FINISHED:COMPLETED"], "COMPLETE"))
        assert supervise_(server, tmp_path)[0]
        assert len(set(server.submitted)) == 3

    def test_results_are_fetched_again_and_not_trained_again(self, tmp_path, monkeypatch):
        server = Server(*[(["FINISHED:COMPLETED"], "COMPLETE")] * 2)
        download, breaks = server.download_job_result, [ConnectionError("reset")]

        def broken(job_id, folder):
            if breaks:
                raise breaks.pop()
            download(job_id, folder)

        monkeypatch.setattr(server, "download_job_result", broken)
        assert supervise_(server, tmp_path)[0]
        assert len(server.submitted) == 1

    def test_results_that_cannot_be_had_end_it(self, tmp_path, monkeypatch):
        monkeypatch.setattr(supervise, "AWAY_S", 0.1)
        server = Server(*[(["FINISHED:COMPLETED"], None)] * 2)
        with pytest.raises(ConnectionError, match="the server must answer"):
            supervise_(server, tmp_path)
        (tmp_path / "results/id-1").rmdir()
        (tmp_path / "results").rmdir()
        (tmp_path / "results").write_text("a file")
        with pytest.raises(OSError, match="results"):
            supervise_(Server((["FINISHED:COMPLETED"], "COMPLETE")), tmp_path)

    def test_it_gives_up(self, tmp_path):
        server = Server(*[([BROKE], None)] * 2)
        assert not supervise_(server, tmp_path, attempts=2)[0]
        assert len(server.submitted) == 2

    def test_what_an_admin_aborted_stays_so(self, tmp_path):
        server = Server(([*RUNS, "FINISHED:ABORTED"], None))
        assert not supervise_(server, tmp_path)[0]
        assert len(server.submitted) == 1

    def test_a_job_without_a_process_is_aborted_and_submitted_again(self, tmp_path, monkeypatch):
        monkeypatch.setattr(supervise, "LOST_S", 0.1)
        server = Server((["RUNNING"], None), (["FINISHED:COMPLETED"], "COMPLETE"), lost=(1,))
        done, said = supervise_(server, tmp_path)
        assert done
        assert server.aborted == ["id-1"]
        assert "id-1: LOST; the run is unfinished" in said

    def test_a_job_that_the_server_forgot_is_submitted_again(self, tmp_path):
        server = Server((["RUNNING", JobNotFound()], None), (["FINISHED:COMPLETED"], "COMPLETE"))
        assert supervise_(server, tmp_path)[0]

    def test_it_waits_for_the_server(self, tmp_path):
        server = Server((["FINISHED:COMPLETED"], "COMPLETE"), away=5)
        done, said = supervise_(server, tmp_path)
        assert done
        assert said[0] == "the server does not answer (NoConnection); waiting for it"

    def test_but_not_for_ever(self, tmp_path, monkeypatch):
        with pytest.raises(ConnectionError, match="the server must answer; it does not"):
            Supervisor(Server(away=10**9).connect, print, poll_s=0.01).ask(lambda _session: None, away_s=0.1)

    def test_without_the_right_it_ends_at_once(self):
        def refuse(_session):
            raise AuthorizationError("not you")

        with pytest.raises(AuthorizationError):
            Supervisor(Server().connect, print).ask(refuse)


def test_a_kit_is_needed(tmp_path):
    with pytest.raises(ValueError, match="must be the startup kit of an admin"):
        connector(tmp_path)


@pytest.mark.parametrize("text", ["{}", "[]", "no", '{"admin": 1}'])
def test_a_damaged_kit_is_one_line(tmp_path, text):
    (tmp_path / "startup").mkdir()
    (tmp_path / "startup/fed_admin.json").write_text(text)
    with pytest.raises(ValueError, match=r"startup/fed_admin.json must name the admin; got \w+Error"):
        connector(tmp_path)
