from pathlib import Path

import pytest

from omnifm.data.importers import _source
from omnifm.data.importers._sites import Case
from omnifm.data.importers._source import inside, pictures, read_entries, readable, report_left_out
from omnifm.data.local_lists import LeftOut, write_left_out
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
    def test_reads_each_image_once_and_drops_all_its_cases(self, tmp_path, capsys):
        asked = []

        def read(case):
            asked.append(case.item["image"])
            if case.item["image"] == 7:
                raise RefusedImage("truncated", "ends early")

        cases = [
            Case({"image": image}, "", "", "", {"x": Path(f"Doe-{image}")}) for image in range(40) for _ in range(2)
        ]
        kept = readable(cases, lambda case: case.item["image"], read, tmp_path)
        assert sorted(asked) == list(range(40))
        assert kept == [case for case in cases if case.item["image"] != 7]
        said, listed = capsys.readouterr().out, (tmp_path / "left-out.txt").read_text()
        assert said.startswith(
            "left out 1 of 40 images. 1 truncated: the file holds fewer or more bytes than its header"
        )
        assert said.endswith("Names are in left-out.txt in the destination folder; it stays in the hospital.\n")
        assert "Doe" not in said
        assert "What to do: Export or copy the file again.\n  Doe-7  (ends early)\n" in listed
        assert (tmp_path / "left-out.txt").stat().st_mode & 0o777 == 0o600


class TestReportLeftOut:
    @pytest.mark.parametrize(("total", "number"), [(2, 1), (19, 1), (20, 1), (100, 5)])
    def test_lets_few_pass(self, tmp_path, capsys, total, number):
        report_left_out("lines", total, [LeftOut("corrupt")] * number, tmp_path)
        said = capsys.readouterr().out
        assert said.startswith(f"left out {number} of {total} lines. {number} corrupt: a checksum or a decoder failed")
        assert not list(tmp_path.iterdir())  # a line has no name to list

    def test_is_silent_where_nothing_is_left_out(self, tmp_path, capsys):
        report_left_out("lines", 3, [], tmp_path)
        assert capsys.readouterr().out == ""

    @pytest.mark.parametrize(("total", "number"), [(1, 1), (2, 2), (19, 2), (21, 2), (100, 6)])
    def test_stops_above_5_percent_and_with_nothing_left(self, tmp_path, total, number):
        with pytest.raises(ValueError, match=f"at most 5%.*; got {total}, left out {number}. {number} co"):
            report_left_out("lines", total, [LeftOut("corrupt", "Doe")] * number, tmp_path)
        assert (tmp_path / "left-out.txt").read_text().count("  Doe\n") == number

    def test_stops_with_nothing(self, tmp_path):
        with pytest.raises(ValueError, match="source must hold usable lines; it holds none"):
            report_left_out("lines", 0, [], tmp_path)


def test_the_list_of_a_second_import_follows_the_first(tmp_path):
    for name in ("first", "second"):
        write_left_out(tmp_path, [LeftOut("truncated", name), LeftOut("malformed")])
    assert [line for line in (tmp_path / "left-out.txt").read_text().splitlines() if line.startswith("  ")] == [
        "  first",
        "  second",
    ]


def test_a_name_cannot_forge_a_line(tmp_path):
    write_left_out(tmp_path, [LeftOut("truncated", "a\nb\udcff")])
    assert b"  a?b\xff\n" in (tmp_path / "left-out.txt").read_bytes()
