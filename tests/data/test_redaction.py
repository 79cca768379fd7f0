"""Nothing that could name a patient is said aloud; what helps a person to find a fault still is."""

import logging
import subprocess
import sys
import warnings

import pytest

from omnifm.config import Experiment
from omnifm.data import redaction
from omnifm.data.redaction import Redactor, install, traceback_of, words_of

CANARY = "CANARY^ALICE"


@pytest.fixture
def said(monkeypatch):
    """Log something; return what a handler of the root logger would write."""
    monkeypatch.setattr(redaction, "PRIVATE", set())
    lines = []

    class Handler(logging.Handler):
        def emit(self, record):
            lines.append(self.format(record))

    def log(name, message, *args, **options):
        handler = Handler()
        handler.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s"))
        handler.addFilter(Redactor())
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        try:
            logger.warning(message, *args, **options)
        finally:
            logger.removeHandler(handler)
        return lines[-1]

    return log


class TestMessages:
    def test_ours_keep_their_words_without_the_sites_paths(self, said):
        install("/data/CANARY^ALICE/site", "/state/CANARY^BOB")
        line = said("omnifm.state", "cannot write %s", "/state/CANARY^BOB/x y/CANARY^EVE.state")
        assert line == "omnifm.state WARNING cannot write <path>"
        line = said("nvflare.private", "in /tmp/ws: '/data/CANARY^ALICE/site/a.dcm' is gone")
        assert line == "nvflare.private WARNING in /tmp/ws: '<path>"

    def test_a_path_hides_the_rest_of_its_line(self, said):
        """Its end cannot be told: names hold spaces, quotes and commas."""
        install("/data")
        assert said("omnifm", "two:\nin '/data/a's CANARY.nii', it\nend") == "omnifm WARNING two:\nin '<path>\nend"

    def test_the_root_folder_hides_nothing(self, said):
        install("/")
        assert said("omnifm", "1/2 done") == "omnifm WARNING 1/2 done"

    @pytest.mark.parametrize("name", ["pydicom.valuerep", "PIL.TiffImagePlugin", "nibabel.global", "root", "new"])
    def test_libraries_that_read_files_lose_their_words(self, said, name):
        line = said(name, f"Invalid value for VR UI: {CANARY}")
        assert line == f"{name} WARNING redacted: a message from {name.split('.')[0]}"

    def test_libraries_that_read_none_lose_quotations_and_paths(self, said):
        line = said("torch.cuda", "driver 11.4 is too old for '%s' in /home/CANARY/x.py", CANARY)
        assert line == "torch.cuda WARNING driver 11.4 is too old for <...> in <...>"

    def test_a_message_that_breaks_the_filter_loses_its_words(self, said):
        class Hostile:
            def __str__(self):
                raise RuntimeError(CANARY)

        assert said("omnifm", "%s", Hostile()) == "omnifm WARNING redacted"
        assert said("omnifm", f"{CANARY} %d and %d", 1) == "omnifm WARNING redacted"

    def test_two_handlers_write_the_same(self, said):
        first, second = Redactor(), Redactor()
        record = logging.LogRecord("pydicom", logging.INFO, "f", 1, CANARY, None, None)
        assert first.filter(record) and second.filter(record)
        assert record.getMessage() == "redacted: a message from pydicom"


class TestWarnings:
    def shown(self, said, message, file):
        text = warnings.formatwarning(message, UserWarning, file, 7, line=f"call({CANARY!r})")
        return said("py.warnings", "%s", text)

    def test_of_parsers_only_the_source_remains(self, said):
        line = self.shown(said, f"Invalid value for VR UI: '{CANARY}'.", "/v/site-packages/pydicom/valuerep.py")
        assert line == "py.warnings WARNING redacted: UserWarning from pydicom"

    def test_of_torch_the_words_remain(self, said):
        line = self.shown(said, f"lr_scheduler before optimizer, '{CANARY}'", "/v/site-packages/torch/optim/lr.py")
        assert line == "py.warnings WARNING UserWarning lr_scheduler before optimizer, <...>"

    def test_of_unknown_sources_nothing_remains(self, said):
        """A library's `stacklevel` makes its warning look like one of the file that called it."""
        line = self.shown(said, CANARY, "/somewhere/omnifm/data/dicom.py")
        assert line == "py.warnings WARNING redacted: Warning from unknown"


class TestErrors:
    def caught(self, act):
        try:
            act()
        except (ValueError, KeyError) as error:
            return error

    def test_ours_are_told_and_others_are_not(self):
        ours = self.caught(lambda: Experiment.from_json("[]"))
        assert words_of(ours) == "experiment.json: must be an object; got list"
        assert words_of(self.caught(lambda: int(CANARY))) is None
        assert words_of(ValueError(CANARY)) is None  # never raised: nobody knows whose it is

    def test_a_traceback_says_where_but_not_what(self, said):
        error = self.caught(lambda: int(CANARY))
        assert CANARY not in traceback_of(error)
        assert traceback_of(error).endswith("\nValueError")
        assert "in caught" in traceback_of(error)
        line = said("omnifm.trainer", "failed", exc_info=error)
        assert "in caught\n" in line
        assert line.endswith("\nValueError")
        assert CANARY not in line

    def test_what_ends_a_process_is_redacted(self):
        code = """
import logging, threading, warnings
from omnifm.data import redaction
logging.basicConfig()
redaction.guard()
warnings.warn("CANARY^ALICE")
logging.getLogger("pydicom").error("CANARY^ALICE")
thread = threading.Thread(target=lambda: int("CANARY^ALICE"))
thread.start()
thread.join()
{}["CANARY^ALICE"]
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 1
        assert "CANARY" not in done.stdout + done.stderr
        assert "redacted: Warning from unknown" in done.stderr
        assert "redacted: a message from pydicom" in done.stderr
        assert "ValueError" in done.stderr
        assert done.stderr.splitlines()[-1] == "KeyError"
