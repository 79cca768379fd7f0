"""The reading child process under attack.  Run as a program, this file is a child that does whatever it is asked."""

import ctypes
import logging
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from omnifm.data import decode, reader, reader_process
from omnifm.data.reader import Reader
from omnifm.data.refusal import RefusedImage
from omnifm.data.volume import MAX_BYTES, read_label, read_volume

MIB = 2**20
NOWHERE = Path("nowhere")


class PanicException(BaseException):
    """As pyo3 raises it."""


def throw(error: BaseException) -> None:
    raise error


def chatter() -> None:
    """Every way in which a library may talk."""
    print("Doe^John")
    print("Doe^John", file=sys.stderr, flush=True)
    os.write(1, b"Doe^John\n")
    os.write(2, b"Doe^John\n")
    ctypes.CDLL(None).puts(b"Doe^John")
    ctypes.CDLL(None).fflush(None)
    warnings.warn("Doe^John", stacklevel=1)
    logging.getLogger("pydicom").error("Doe^John")


def write(path: str) -> None:
    with open(path, "wb") as file:
        file.write(b"Doe^John")


def spin() -> None:
    re.match("(a+)+$", "a" * 60 + "b")  # native code that keeps the interpreter's lock


def stay() -> None:
    for limit in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(limit, signal.SIG_IGN)
    spin()


WORK = {
    "nothing": lambda: None,
    "panic": lambda: throw(PanicException("Doe^John")),
    "exit": lambda: sys.exit(3),
    "interrupt": lambda: throw(KeyboardInterrupt()),
    "error": lambda: throw(OSError("Doe^John")),
    "refusal": lambda: throw(RefusedImage("mosaic", "must be one")),
    "hog": lambda: np.ones(4 * 2**30, np.uint8),
    "many": lambda: [bytearray(MIB) for _ in range(4096)],
    "sleep": lambda: time.sleep(60),
    "wait": lambda: time.sleep(0.9),
    "spin": spin,
    "stay": stay,
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": lambda: ctypes.string_at(0),
    "abort": os.abort,
    "leave": lambda: os._exit(3),
    "chatter": chatter,
    # 3 is the way to the parent, once standard output is mute.
    "lie": lambda: (os.write(3, reader.LENGTH.pack(2**60)), time.sleep(60)),
}


def do(request: dict) -> tuple[dict, np.ndarray]:
    if request["work"] == "write":
        write(request["path"])
    else:
        WORK[request["work"]]()
    return {"echo": request.get("echo")}, np.arange(6.0).reshape(2, 3)


@pytest.fixture(scope="module")
def hostile():
    child = Reader([sys.executable, "-P", __file__])
    yield child
    child.close()


def ask(child: Reader, work: str, *, seconds: float = 20.0, max_bytes: int = 64 * MIB, path: Path = NOWHERE, **more):
    return child.ask(path, seconds, work=work, max_bytes=max_bytes, **more)


def refused(reason: str, match: str | None = None):
    return pytest.raises(RefusedImage, match=match, check=lambda error: error.reason == reason)


def picture(path: Path, grey: int) -> Path:
    Image.fromarray(np.full((3, 4), grey, np.uint8)).save(path)
    return path


@pytest.mark.slow
class TestLimits:
    @pytest.mark.parametrize("work", ["hog", "many"])
    def test_memory_over_the_budget_is_refused_and_is_the_childs_alone(self, hostile, work):
        before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with refused("too_large", "must fit in memory; its decoder ran out of it"):
            ask(hostile, work)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 50 * 1024

    def test_a_small_budget_does_not_outlive_its_request(self, hostile):
        ask(hostile, "nothing", max_bytes=0)
        pid = hostile.child.pid
        with refused("too_large"):
            ask(hostile, "hog", max_bytes=MIB)
        assert ask(hostile, "nothing")[1].shape == (2, 3)
        assert hostile.child.pid == pid

    def test_processor_time_over_the_limit_is_refused(self, hostile):
        ask(hostile, "nothing")
        with refused("too_slow", "must decode within its limit of processor time; it did not"):
            ask(hostile, "spin", seconds=0.3)

    def test_a_busy_machine_is_not_the_images_fault(self, hostile):
        assert ask(hostile, "wait", seconds=0.3, echo=1)[0] == {"echo": 1}

    @pytest.mark.parametrize("work", ["sleep", "stay"])
    def test_a_child_that_outstays_its_limit_is_killed(self, hostile, work, monkeypatch):
        monkeypatch.setattr(reader, "CLOCK_S", 2.0)
        monkeypatch.setattr(reader, "GRACE_S", 0.5)
        ask(hostile, "nothing")
        pid, start = hostile.child.pid, time.monotonic()
        with refused("too_slow", "must be read within 2 s; its disk or this machine took longer"):
            ask(hostile, work, seconds=0.3)
        assert time.monotonic() - start < 10
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    def test_a_child_that_waits_ends_itself_where_its_parent_is_gone(self, tmp_path):
        code = (
            "import sys\nfrom pathlib import Path\nfrom omnifm.data import reader\nreader.CLOCK_S = 1.0\n"
            "child = reader.Reader([sys.executable, '-P', sys.argv[1]])\n"
            "child.ask(Path(), 1.0, work='nothing', max_bytes=0)\nprint(child.child.pid, flush=True)\n"
            "child.ask(Path(), 0.5, work='sleep', max_bytes=0)"
        )
        with subprocess.Popen([sys.executable, "-c", code, __file__], stdout=subprocess.PIPE, text=True) as parent:
            pid = int(parent.stdout.readline())
            time.sleep(0.3)
            parent.kill()
        end = time.monotonic() + 5
        while time.monotonic() < end and _is_alive(pid):
            time.sleep(0.05)
        assert not _is_alive(pid)

    def test_no_file_is_written(self, hostile, tmp_path):
        with refused("corrupt", "the decoder raised OSError"):
            ask(hostile, "write", path=tmp_path / "new")
        assert not (tmp_path / "new").exists() or (tmp_path / "new").stat().st_size == 0

    def test_what_libraries_print_goes_nowhere(self, hostile, capfd):
        for number in range(3):
            facts, array = ask(hostile, "chatter", echo=number)
            assert facts == {"echo": number}
            np.testing.assert_array_equal(array, [[0, 1, 2], [3, 4, 5]])
        assert capfd.readouterr() == ("", "")


class TestDeaths:
    @pytest.mark.parametrize(
        ("work", "reason", "match"),
        [
            ("killed", "too_large", "the system ended its decoder"),
            ("segfault", "corrupt", "the decoder crashed with code -11"),
            ("abort", "corrupt", "the decoder crashed with code -6"),
            ("leave", "corrupt", "the decoder crashed with code 3"),
        ],
    )
    def test_a_death_costs_one_refusal(self, hostile, work, reason, match):
        with refused(reason, match):
            ask(hostile, work)
        assert ask(hostile, "nothing", echo=work)[0] == {"echo": work}

    @pytest.mark.parametrize(
        ("work", "name"),
        [("panic", "PanicException"), ("exit", "SystemExit"), ("interrupt", "KeyboardInterrupt"), ("error", "OSError")],
    )
    def test_whatever_is_thrown_is_a_refusal_and_no_death(self, hostile, work, name):
        ask(hostile, "nothing")
        pid = hostile.child.pid
        with refused("corrupt", f"^image must decode; the decoder raised {name}$"):
            ask(hostile, work)
        ask(hostile, "nothing")
        assert hostile.child.pid == pid

    def test_a_refusal_arrives_as_it_was_raised(self, hostile):
        with refused("mosaic", "^must be one$"):
            ask(hostile, "refusal")

    def test_a_reply_too_long_for_this_process_is_a_refusal(self, hostile):
        with refused("too_large", "there is too little left"):
            ask(hostile, "lie")
        ask(hostile, "nothing")

    def test_after_an_interrupt_no_stale_answer(self, hostile, monkeypatch):
        ask(hostile, "nothing", echo="first")
        with monkeypatch.context() as patch:
            patch.setattr(reader, "_receive", lambda *_: throw(KeyboardInterrupt()))
            with pytest.raises(KeyboardInterrupt):
                ask(hostile, "nothing", echo="interrupted")
        assert ask(hostile, "nothing", echo="next")[0] == {"echo": "next"}

    def test_a_child_that_cannot_start_is_nobodys_file(self):
        with pytest.raises(ValueError, match="the reading process must start; it did not"):
            Reader(["false"]).ask(NOWHERE, 1.0)


@pytest.fixture(scope="module")
def own():
    child = Reader()
    yield child
    child.close()


def look(child: Reader, path: Path) -> np.ndarray:
    return child.ask(path, what="image", max_bytes=MAX_BYTES, burned_in_text="unknown")[1]


class TestProcess:
    def test_survives_from_one_image_to_the_next_and_comes_back_when_killed(self, own, tmp_path):
        file = picture(tmp_path / "a.png", 7)
        look(own, file)
        pid = own.child.pid
        look(own, file)
        assert own.child.pid == pid
        os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)
        assert look(own, file)[0, 0, 0] == 7
        assert own.child.pid != pid

    def test_ends_when_closed_and_starts_again(self, own, tmp_path):
        file = picture(tmp_path / "a.png", 7)
        look(own, file)
        child = own.child
        own.close()
        own.close()
        assert child.returncode == -signal.SIGKILL
        assert look(own, file)[0, 0, 0] == 7

    def test_threads_get_their_own_answers(self, own, tmp_path):
        files = {grey: picture(tmp_path / f"{grey}.png", grey) for grey in range(16)}
        with ThreadPoolExecutor(8) as pool:
            found = dict(zip(files, pool.map(lambda file: look(own, file), files.values()), strict=True))
        assert all((array == grey).all() for grey, array in found.items())

    def test_a_fork_gets_its_own_child_even_while_another_thread_reads(self, own, tmp_path):
        file = picture(tmp_path / "a.png", 7)
        look(own, file)
        before = own.child.pid
        with own.lock:  # as if another thread were reading: in the fork nobody would ever release it
            fork = os.fork()
            if fork == 0:
                signal.alarm(20)  # rather dead than waiting for ever
                os._exit(0 if look(own, file)[0, 0, 0] == 7 and own.child.pid != before else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]) == 0
        assert look(own, file)[0, 0, 0] == 7
        assert own.child.pid == before

    @pytest.mark.parametrize("fork", ["", "os.fork() == 0 and (time.sleep(5), os._exit(0))\n"], ids=["alone", "forked"])
    def test_ends_with_its_parent(self, tmp_path, fork):
        file = picture(tmp_path / "a.png", 7)
        code = (
            "import os, sys, time\nfrom omnifm.data.reader import READER\nfrom omnifm.data.volume import read_volume\n"
            f"read_volume(sys.argv[1])\nprint(READER.child.pid, flush=True)\n{fork}os._exit(0)"
        )
        with subprocess.Popen([sys.executable, "-c", code, file], stdout=subprocess.PIPE, text=True) as parent:
            pid = int(parent.stdout.readline())
            end = time.monotonic() + 2
            while time.monotonic() < end and _is_alive(pid):
                time.sleep(0.02)
            assert not _is_alive(pid)
            parent.stdout.close()

    def test_the_working_directory_holds_no_libraries(self, tmp_path, monkeypatch):
        for name in ("numpy", "json", "pydicom"):
            (tmp_path / f"{name}.py").write_text("raise SystemExit(9)")
        file = picture(tmp_path / "a.png", 7)
        monkeypatch.chdir(tmp_path)
        child = Reader()
        assert look(child, file)[0, 0, 0] == 7
        child.close()


def _is_alive(pid: int) -> bool:
    """Whether a process runs; one that only nobody has buried does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class TestRecording:
    """What a thread reads inside the block is in its list: no more, and nothing of another thread."""

    def test_holds_every_read_of_this_thread_and_no_other(self, own, tmp_path):
        first, second, other = (picture(tmp_path / f"{grey}.png", grey) for grey in (1, 2, 3))
        look(own, other)
        with own.recording() as reads:
            arrays = [look(own, first), look(own, second)]
            thread = threading.Thread(target=look, args=(own, other))
            thread.start()
            thread.join()
        look(own, other)
        assert [read.path for read in reads] == [first, second]
        assert [read.request["what"] for read in reads] == ["image", "image"]
        assert all(read.array is array for read, array in zip(reads, arrays, strict=True))

    def test_one_in_another_records_for_both(self, own, tmp_path):
        first, second = (picture(tmp_path / f"{grey}.png", grey) for grey in (1, 2))
        with own.recording() as outer:
            look(own, first)
            with own.recording() as inner:
                look(own, second)
        assert ([read.path for read in outer], [read.path for read in inner]) == ([first, second], [second])

    def test_ends_with_an_error_and_leaves_out_what_is_refused(self, own, tmp_path):
        with pytest.raises(ValueError, match="must exist"), own.recording() as reads:
            look(own, tmp_path / "none.png")
        assert reads == []
        assert own.recordings.active == []


class TestAnswers:
    def files(self, folder: Path) -> list[Path]:
        array = np.random.default_rng(0).integers(0, 9, (3, 4, 5)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(array, np.diag([2.0, -3, 4, 1])), folder / "a.nii.gz")
        np.savez(folder / "stack.npz", images=np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
        Image.fromarray(np.arange(36, dtype=np.uint8).reshape(3, 4, 3)).save(folder / "a.png")
        return [folder / name for name in ("a.nii.gz", "stack.npz#1", "a.png")]

    def test_equal_those_of_this_process(self, tmp_path):
        for file in self.files(tmp_path):
            theirs, ours = read_volume(file), decode.read_image(file, MAX_BYTES)
            np.testing.assert_array_equal(theirs.array, ours.array)
            np.testing.assert_array_equal(theirs.affine, ours.affine)
            assert theirs.array.dtype == ours.array.dtype
            assert theirs.array.flags.writeable
            assert (theirs.modality, theirs.vendor, theirs.frame) == (ours.modality, ours.vendor, ours.frame)

    def test_of_masks_too(self, tmp_path):
        for file in self.files(tmp_path)[:2]:
            image, labels = read_volume(file), {value: str(value) for value in range(24)}
            theirs, ours = read_label(file, image, labels), decode.read_mask(file, image, labels, MAX_BYTES)
            np.testing.assert_array_equal(theirs, ours)
            assert theirs.dtype == np.int32

    def test_of_refusals_too(self, tmp_path):
        file = tmp_path / "a.nii.gz"
        file.write_bytes(b"no image")
        with pytest.raises(RefusedImage) as theirs:
            read_volume(file)
        with pytest.raises(RefusedImage) as ours:
            decode.read_image(file, MAX_BYTES)
        assert (theirs.value.reason, str(theirs.value)) == (ours.value.reason, str(ours.value))

    @pytest.mark.parametrize("name", ["pipe.nii.gz", "pipe.dcm", "pipe.png", "pipe"])
    def test_nobody_waits_on_a_pipe(self, tmp_path, name):
        os.mkfifo(tmp_path / name)
        image = decode.read_image(self.files(tmp_path)[0], MAX_BYTES)
        start = time.monotonic()
        for read in (lambda: read_volume(tmp_path / name), lambda: read_label(tmp_path / name, image)):
            with refused("missing_file"):
                read()
        assert time.monotonic() - start < 5

    @pytest.mark.parametrize("others", [0, 1])
    def test_nor_on_one_in_a_series(self, tmp_path, others):
        image = decode.read_image(self.files(tmp_path)[0], MAX_BYTES)
        series = tmp_path / "series"
        series.mkdir()
        os.mkfifo(series / "000001.dcm")
        for number in range(others):
            (series / f"{number}.txt").write_text("no slice")
        start = time.monotonic()
        for read in (lambda: read_volume(series), lambda: read_label(series, image)):
            with refused("not_an_image"):
                read()
        assert time.monotonic() - start < 5


class TestSizeOnDisk:
    def test_golden(self, tmp_path):
        (tmp_path / "stack.npz").write_bytes(bytes(10))
        (tmp_path / "odd#name.nii").write_bytes(bytes(20))
        (tmp_path / "series").mkdir()
        for number in range(3):
            (tmp_path / f"series/{number}").write_bytes(bytes(100))
        names = ["stack.npz", "stack.npz#3", "odd#name.nii", "odd#name.nii#0", "series", "missing", "missing#1", "#1"]
        sizes = [reader._size_on_disk(tmp_path / name) for name in names]
        assert sizes == [10, 10, 20, 20, 300, 0, 0, 0]

    @pytest.mark.parametrize("path", ["a\0b", "x" * 300, "/", ""])
    def test_what_cannot_be_told_is_nothing(self, path):
        assert reader._size_on_disk(Path(path)) >= 0

    def test_gives_a_second_per_mebibyte(self, hostile, tmp_path, monkeypatch):
        (tmp_path / "big").write_bytes(bytes(3 * MIB))
        seen = []
        monkeypatch.setattr(reader, "_send", lambda child, message: seen.append(message) or throw(EOFError()))
        for path in (tmp_path / "big", tmp_path / "missing"):
            with pytest.raises(RefusedImage):
                hostile.ask(path)
        assert [message["seconds"] for message in seen] == [13, 10]


if __name__ == "__main__":
    reader_process.main(do)
