import json
import os
from itertools import combinations
from pathlib import Path

import pytest

from omnifm.data.datalist import DEMO_NAME, fingerprint, owners, read_datalist

IMAGE_AND_LABEL = ("image", "label")


def item(name: str, **more: object) -> dict:
    return {"image": f"images/{name}.nii.gz", "label": f"labels/{name}.nii.gz", **more}


def content(**changes: object) -> dict:
    base = {
        "name": "a set",
        "modality": {"0": "MR"},
        "labels": {"0": "background", "1": "tumour"},
        "training": [item("a"), item("b")],
        "validation": [item("c")],
        "test": [item("d")],
    }
    return {key: value for key, value in (base | changes).items() if value is not None}


def write(folder: Path, **changes: object) -> Path:
    (folder / "dataset.json").write_text(json.dumps(content(**changes)))
    return folder


def read(folder: Path, required: tuple[str, ...] = IMAGE_AND_LABEL, **options):
    return read_datalist(folder, required=required, **options)


class TestReading:
    def test_items_get_absolute_files_modality_and_origin(self, tmp_path):
        training = [item("a", modality="CT", patient=7, question="where?"), item("b")]
        datalist = read(write(tmp_path, training=training))
        first, second = datalist.training
        assert first == {
            "image": tmp_path.resolve() / "images/a.nii.gz",
            "label": tmp_path.resolve() / "labels/a.nii.gz",
            "modality": "CT",
            "burned_in_text": "unknown",
            "patient": "7",
            "question": "where?",
            "origin": ("training", 0),
        }
        assert (second["modality"], second["origin"]) == ("MR", ("training", 1))
        assert datalist.labels == {0: "background", 1: "tumour"}
        assert datalist.root == tmp_path.resolve()
        assert datalist.source == "site"

    def test_folder_and_file_are_the_same(self, tmp_path):
        assert read(write(tmp_path)) == read(tmp_path / "dataset.json")

    def test_the_demo_says_so(self, tmp_path):
        assert read(write(tmp_path, name=DEMO_NAME)).source == "demo"

    def test_class_labels_are_numbers_or_declared_names_of_numbers(self, tmp_path):
        training = [item("a", label=1), item("b", label="tumour"), item("e", label=24)]
        assert [i["label"] for i in read(write(tmp_path, training=training)).training] == [1, 1, 24]

    def test_npz_items_keep_their_index(self, tmp_path):
        training = [{"image": "images.npz#3", "label": 0}]
        assert read(write(tmp_path, training=training)).training[0]["image"].name == "images.npz#3"

    def test_decathlon_notes_are_no_news(self, tmp_path):
        read(write(tmp_path, description="x", licence="y", tensorImageSize="4D", numTraining=2))


class TestSplits:
    def many(self, number: int) -> list[dict]:
        return [item(f"{i}", patient=f"p{i // 2}") for i in range(2 * number)]

    def test_missing_splits_are_cut_out_by_patient(self, tmp_path):
        datalist = read(write(tmp_path, training=self.many(10), validation=None, test=[]))
        patients = [{i["patient"] for i in split} for split in datalist.splits().values()]
        assert sum(len(p) for p in patients) == len(set.union(*patients)) == 10
        assert all(i["origin"][0] == "training" for i in datalist.test)
        assert datalist.automatic == ("training", "validation", "test")

    def test_one_missing_split_leaves_the_other_alone(self, tmp_path):
        datalist = read(write(tmp_path, training=self.many(8), validation=None))
        assert [i["origin"] for i in datalist.test] == [("test", 0)]
        assert len(datalist.training) + len(datalist.validation) == 16
        assert datalist.automatic == ("training", "validation")

    def test_a_list_with_all_splits_is_left_alone(self, tmp_path):
        assert read(write(tmp_path)).automatic == ()

    @pytest.mark.parametrize("number", range(1, 30))
    def test_who_else_is_listed_and_the_order_move_nobody(self, tmp_path, number):
        """The kind of case 22: a patient moved from training to test because somebody else came."""
        everybody = [item(f"{i}", patient=f"p{i // 2}") for i in range(60)]
        some = [everybody[i] for i in range(number, 60, 1 + number % 3)]
        splits = []
        for listed in (everybody, some[::-1]):
            found = read(write(tmp_path, training=listed, validation=None, test=None)).splits()
            splits.append({i["patient"]: name for name, own in found.items() for i in own})
        assert splits[1] == {patient: splits[0][patient] for patient in splits[1]}

    def test_same_seed_same_split_wherever_the_folder_lies(self, tmp_path):
        names = []
        for folder in ("one", "two"):
            (tmp_path / folder).mkdir()
            site = write(tmp_path / folder, training=[item(str(i)) for i in range(20)], validation=None, test=None)
            names.append([i["image"].name for i in read(site).test])
        assert names[0] == names[1]
        assert names[0] != [i["image"].name for i in read(site, seed=1).test]

    def test_pairs_that_share_a_picture_stay_together(self, tmp_path):
        """Twelve patients, nobody named: CT and PET are each beside the same MR, which may stand on either side."""
        pairs = [pair for i in range(12) for pair in ((f"mr{i}", f"ct{i}"), (f"pet{i}", f"mr{i}"))]
        training = [{"image_a": f"{a}.png", "image_b": f"{b}.png"} for a, b in pairs]
        datalist = read(write(tmp_path, training=training, validation=None, test=None), ("image_a", "image_b"))
        shown = [{i[key] for i in split for key in ("image_a", "image_b")} for split in datalist.splits().values()]
        assert sum(len(pictures) for pictures in shown) == 36
        assert all(len(pictures) % 3 == 0 for pictures in shown)  # three of each patient
        assert not any(one & other for one, other in combinations(shown, 2))

    def test_owners_are_joined_by_what_they_share(self, tmp_path):
        training = [item("a", patient="p"), item("b", patient="q"), item("x"), item("b", patient="r"), item("y")]
        training += [item("a"), item("e", patient="r"), item("x"), item("y", patient="p")]
        datalist = read(write(tmp_path, training=training))
        p, q, x = "patient p", "patient q", "image ['images/x.nii.gz']"
        assert owners(datalist.training, datalist.root) == [p, q, x, q, p, p, q, x, p]

    @pytest.mark.parametrize("other", [item("x", patient="p"), item("a"), item("a", patient="q")])
    def test_refuses_a_patient_or_image_in_two_splits(self, tmp_path, other):
        training = [item("b"), item("a", **({"patient": "p"} if "patient" in other else {}))]
        with pytest.raises(ValueError, match="item 1 of 'training' and item 0 of 'test' share one"):
            read(write(tmp_path, training=training, test=[other]))


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "match"),
        [
            ({"training": None}, r"missing training, 0 unknown"),
            ({"name": None, "trainig": []}, r"missing name, 1 unknown"),
            ({"training": []}, "'training' in dataset.json must hold at least one item; got 0"),
            ({"training": {}}, "'training' in dataset.json must be a list; got dict"),
            ({"test": "x"}, "'test' in dataset.json must be a list; got str"),
            ({"name": 3}, "'name' in dataset.json must be a text"),
            ({"modality": "MR"}, "'modality' in dataset.json must be an object like"),
            ({"modality": {"0": "Mr Smith"}}, "'modality' in dataset.json must be a DICOM code"),
            ({"labels": None}, "'labels' in dataset.json must name every label value"),
            ({"labels": {"background": 0}}, "'labels' in dataset.json must be an object like"),
            ({"labels": {"0": "a", "1": "a"}}, "names in 'labels' must differ; got 1 names for 2 values"),
            ({"labels": {"0": "a", "2": "b"}}, "'labels' must have the keys .* without gaps; its 2 keys are others"),
            ({"training": [item("a"), "b.nii"]}, "item 1 of 'training' must be an object; got str"),
            ({"test": [{"image": "a.png"}]}, r"item 0 of 'test' must have .*; missing label"),
            ({"training": [item("a", image=5)]}, "'image' of item 0 of 'training' must be the path of a file; got int"),
            ({"training": [item("a", image="")]}, "'image' of item 0 of 'training' must be the path of a file"),
            ({"training": [item("a", image="a\0b")]}, "'image' of item 0 of 'training' must be the path of a file"),
            ({"training": [item("a", label=-1)]}, "'label' of item 0 of 'training' must be a class number, .*; got -1"),
            (
                {"training": [item("a", label=True)]},
                "'label' of item 0 .* must be the path of a file; got bool",
            ),
            (
                {"training": [item("a", label=0.5)]},
                "'label' of item 0 .* must be the path of a file; got float",
            ),
            ({"training": [item("a", patient="")]}, "'patient' of item 0 of .* must be a text that is not empty"),
            ({"training": [item("a", patient=1.5)]}, "'patient' of item 0 .*; got float"),
            ({"training": [item("a", modality="john")]}, "'modality' of item 0 of 'training' must be a DICOM code"),
        ],
    )
    def test_names_thing_rule_and_value(self, tmp_path, changes, match):
        with pytest.raises(ValueError, match=match) as caught:
            read(write(tmp_path, **changes))
        assert "\n" not in str(caught.value)
        assert str(tmp_path) not in str(caught.value)

    @pytest.mark.parametrize(
        ("text", "match"),
        [
            (b"{", "must be JSON; line 1 column 2"),
            (
                b'{"name": "a", "training": [{"image": "", "image": ""}]}',
                "key must appear only once .*; one appears twice",
            ),
            (b"[1]", "must be an object; got list"),
            (b"\xff\xfe", "must be UTF-8 text"),
            (b"[" * 100_000, "nested too deeply"),
        ],
    )
    def test_refuses_what_is_no_list(self, tmp_path, text, match):
        (tmp_path / "dataset.json").write_bytes(text)
        with pytest.raises(ValueError, match=match):
            read(tmp_path)

    def test_refuses_missing_folder_and_missing_list(self, tmp_path):
        with pytest.raises(ValueError, match=r"folder must hold dataset\.json; it does not"):
            read(tmp_path)
        with pytest.raises(ValueError, match="the folder does not exist"):
            read(tmp_path / "nowhere" / "dataset.json")

    @pytest.mark.parametrize("key", ["image", "label"])
    @pytest.mark.parametrize("path", ["../x.png", "/etc/passwd", "link/x.png", "link.npz#1", "a/../../x.png"])
    def test_refuses_paths_that_leave(self, tmp_path, key, path):
        site = tmp_path / "site"
        site.mkdir()
        (site / "link").symlink_to(tmp_path)
        (site / "link.npz").symlink_to(tmp_path / "x.npz")
        with pytest.raises(
            ValueError, match=f"'{key}' of item 0 of 'training' must be a plain path inside the site's folder"
        ) as caught:
            read(write(site, training=[item("a", **{key: path})]))
        assert path not in str(caught.value)

    @pytest.mark.parametrize("path", ["images/../images/a.png", "{site}/images/a.png"])
    def test_refuses_detours_even_if_they_end_at_home(self, tmp_path, path):
        with pytest.raises(ValueError, match="must be a plain path inside the site's folder"):
            read(write(tmp_path, training=[item("a", image=path.format(site=tmp_path))]))

    def test_a_circle_of_links_is_refused(self, tmp_path):
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        with pytest.raises(ValueError, match="must be a path this system can follow"):
            read(write(tmp_path, training=[item("a", image="loop/x.png")]))

    def test_the_sites_own_configuration_may_allow_a_root(self, tmp_path):
        site, archive = tmp_path / "site", tmp_path / "archive"
        site.mkdir()
        archive.mkdir()
        for path in (str(archive / "a.png"), "../archive/a.png"):
            folder = write(site, training=[item("a", image=path)])
            image = read(folder, allowed_roots=(archive,)).training[0]["image"]
            assert image == (archive / "a.png").resolve()

    def test_links_inside_the_folder_are_fine(self, tmp_path):
        (tmp_path / "images").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "images")
        read(write(tmp_path, training=[item("a", image="link/a.png")]))

    def test_a_missing_file_is_no_error_yet(self, tmp_path):
        assert not read(write(tmp_path)).training[0]["image"].exists()


class TestFingerprint:
    def test_changes_with_list_size_and_time_and_only_then(self, tmp_path):
        (tmp_path / "images").mkdir()
        image = tmp_path / "images/a.nii.gz"
        seen = [fingerprint(read(write(tmp_path)))]
        image.write_bytes(b"one")
        seen.append(fingerprint(read(tmp_path)))
        os.utime(image, ns=(0, 1))
        seen.append(fingerprint(read(tmp_path)))
        seen.append(fingerprint(read(write(tmp_path, labels={"0": "background", "1": "oedema"}))))
        seen.append(fingerprint(read(write(tmp_path, training=[item("b"), item("a")]))))
        assert len(set(seen)) == 5
        assert fingerprint(read(tmp_path)) == seen[-1]

    def test_sees_into_a_series_folder(self, tmp_path):
        (tmp_path / "series").mkdir()
        write(tmp_path, training=[item("a", image="series")])
        before = fingerprint(read(tmp_path))
        (tmp_path / "series/1.dcm").write_bytes(b"x")
        assert fingerprint(read(tmp_path)) != before
