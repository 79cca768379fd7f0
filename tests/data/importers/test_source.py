import pytest

from omnifm.data.importers import _source
from omnifm.data.importers._source import inside, pictures, read_entries, readable, report_left_out
from omnifm.data.refusal import RefusedImage
from tests.data.importers.layouts import picture


class TestInside:
    @pytest.mark.parametrize("text", ["", "/etc/passwd", "../x", "a/../../x", "a\0b", "out/x", "loop/x"])
    def test_refuses_what_leads_out(self, tmp_path, text):
        source = tmp_path / "source"
        source.mkdir()
        (source / "out").symlink_to(tmp_path)
        (source / "loop").symlink_to("loop")
        with pytest.raises(ValueError, match=r"^entry 3 must be a plain path inside the source's folder; it is not$"):
            inside(source, text, "entry 3")

    def test_a_link_within_the_source_is_fine(self, tmp_path):
        (tmp_path / "here").mkdir()
        (tmp_path / "link").symlink_to("here")
        assert inside(tmp_path, "link/x.png", "it") == tmp_path / "link/x.png"


def test_pictures_are_in_order_and_without_hidden_files(tmp_path):
    for name in ("b/2.png", "a/1.JPG", "a/._1.jpg", ".x.png"):
        picture(tmp_path / name)
    (tmp_path / "a/notes.txt").write_text("")
    assert [file.relative_to(tmp_path).as_posix() for file in pictures(tmp_path)] == ["a/1.JPG", "b/2.png"]


class TestReadEntries:
    @pytest.mark.parametrize("content", [b"{}", b"[", b"\xff\xfe[", b"", b"[" * 100_000])
    def test_refuses_what_is_no_list(self, tmp_path, content):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"^a\.json must be a JSON list; it is not$"):
            read_entries(tmp_path / "a.json")

    def test_refuses_a_huge_file(self, tmp_path, monkeypatch):
        monkeypatch.setattr(_source, "MAX_JSON_BYTES", 3)
        (tmp_path / "a.json").write_text("[1, 2]")
        with pytest.raises(ValueError, match=r"a\.json must be at most 3 bytes; got 6"):
            read_entries(tmp_path / "a.json")


class TestReadable:
    def test_reads_each_image_once_and_drops_all_its_cases(self, capsys):
        asked = []

        def read(case):
            asked.append(case[0])
            if case[0] == 7:
                raise RefusedImage("truncated", "")

        cases = [(image, question) for image in range(40) for question in "ab"]
        kept = readable(cases, key=lambda case: case[0], read=read)
        assert sorted(asked) == list(range(40))
        assert kept == [case for case in cases if case[0] != 7]
        assert capsys.readouterr().out == "left out 1 of 40 images: truncated 1\n"


class TestSettle:
    @pytest.mark.parametrize(("total", "number"), [(2, 1), (19, 1), (20, 1), (100, 5)])
    def test_lets_few_pass(self, capsys, total, number):
        report_left_out("lines", total, ["corrupt"] * number)
        assert capsys.readouterr().out == f"left out {number} of {total} lines: corrupt {number}\n"

    def test_is_silent_where_nothing_is_left_out(self, capsys):
        report_left_out("lines", 3, [])
        assert capsys.readouterr().out == ""

    @pytest.mark.parametrize(("total", "number"), [(0, 0), (1, 1), (2, 2), (19, 2), (21, 2), (100, 6)])
    def test_stops_above_5_percent_and_with_nothing_left(self, total, number):
        with pytest.raises(ValueError, match=f"at most 5% of them left out; got {total}, left out {number}"):
            report_left_out("lines", total, ["corrupt"] * number)
