import os
import threading

import nibabel
import numpy as np
import pytest

from omnifm.data import demo
from omnifm.data.datalist import read_datalist
from omnifm.data.demo import demo_site, make_site
from omnifm.data.demos._heads import TISSUES, Scanner, draw_head, positions
from omnifm.data.volume import read_label, read_volume


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


def cases(cache, site):
    datalist = read_datalist(demo_site("segmentation", site, cache=cache), required=("image", "label"))
    for item in datalist.training:
        image = read_volume(item["image"])
        yield image, read_label(item["label"], image, datalist.labels)


class TestSegmentation:
    def test_is_a_demo_of_12_4_and_5_cases(self, cache):
        datalist = read_datalist(demo_site("segmentation", "site-1", cache=cache), required=("image", "label"))
        assert datalist.source == "demo"
        assert [len(split) for split in datalist.splits().values()] == [12, 4, 5]
        raw = nibabel.load(datalist.training[0]["image"])
        assert raw.get_data_dtype() == np.int16
        assert raw.shape == (48, 48, 40)

    @pytest.mark.parametrize("site", ["site-1", "site-2"])
    def test_lesions_are_1_to_4_percent_of_the_head_and_the_brightest(self, cache, site):
        shares = []
        for image, label in cases(cache, site):
            head = image.array > 0.25 * np.percentile(image.array, 90)
            shares.append(label.sum() / head.sum())
            assert image.array[label == 1].mean() > 1.3 * image.array[head & (label == 0)].mean()
        assert 0.01 < np.mean(shares) < 0.04
        assert min(shares) > 0.005
        assert max(shares) < 0.06

    def test_sites_differ_in_contrast_spacing_and_orientation(self, cache):
        first, second = (next(cases(cache, site))[0] for site in ("site-1", "site-2"))
        assert nibabel.aff2axcodes(first.affine) != nibabel.aff2axcodes(second.affine)
        assert first.spacing_mm != pytest.approx(second.spacing_mm)
        contrasts = [Scanner.of_site(f"site-{i}", np.random.default_rng(0)).contrast for i in (1, 2)]
        grey, white = TISSUES.index("grey"), TISSUES.index("white")
        assert contrasts[0][white] > contrasts[0][grey]
        assert contrasts[1][white] < contrasts[1][grey]

    def test_the_same_head_in_any_orientation(self):
        """A head is drawn in mm: seen through a mirrored grid it is the same head, mirrored."""
        scanner = Scanner.of_site("site-1", np.random.default_rng(0))
        affine = scanner.affine()
        mirrored = affine @ np.array([[-1, 0, 0, 47], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
        heads = [draw_head(positions(a), np.random.default_rng(5)) for a in (affine, mirrored)]
        brain = [np.isin(head, [TISSUES.index("skull"), TISSUES.index("scalp")]) for head in heads]
        np.testing.assert_array_equal(brain[0], brain[1][::-1])

    def test_same_seed_same_bytes(self, cache, tmp_path):
        again = demo_site("segmentation", "site-1", cache=tmp_path)
        first = demo_site("segmentation", "site-1", cache=cache)
        files = sorted(file.relative_to(first) for file in first.rglob("*") if file.is_file())
        assert len(files) == 2 * 21 + 1
        assert all((first / file).read_bytes() == (again / file).read_bytes() for file in files)


class TestCache:
    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch):
        self.made = 0
        lock = threading.Lock()

        def make(folder, site, seed):
            with lock:
                self.made += 1
            (folder / "dataset.json").write_text(f"{site} {seed}")

        real = demo.maker
        monkeypatch.setattr(demo, "maker", lambda task: make if task == "quick" else real(task))

    def test_made_once_then_found(self, tmp_path):
        folders = {demo_site("quick", "a", seed, tmp_path) for seed in (0, 0, 1)}
        assert len(folders) == self.made == 2

    def test_two_at_once_agree_and_leave_nothing_behind(self, tmp_path):
        threads = [threading.Thread(target=demo_site, args=("quick", "a", 0, tmp_path)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        folder = demo_site("quick", "a", 0, tmp_path)
        assert [f.name for f in folder.parent.iterdir()] == ["a"]

    def test_a_failure_leaves_nothing_behind(self, tmp_path, monkeypatch):
        monkeypatch.setattr(demo, "maker", lambda task: lambda folder, site, seed: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            make_site("broken", "a", tmp_path / "a")
        assert list(tmp_path.iterdir()) == []

    def test_lives_in_the_users_cache_or_the_temporary_folder(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        assert demo_site("quick", "a").is_relative_to(tmp_path / "cache")
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # cannot be a folder
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        fallback = tmp_path / f"omnifm-demo-{os.getuid()}"
        assert demo_site("quick", "a").is_relative_to(fallback)
        assert fallback.stat().st_mode & 0o777 == 0o700

    def test_refuses_a_temporary_folder_that_is_a_link(self, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("")
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / f"omnifm-demo-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        with pytest.raises(ValueError, match="cache must be our own folder"):
            demo_site("quick", "a")

    def test_rejects_unknown_tasks_and_names(self, tmp_path):
        with pytest.raises(ValueError, match=r"one of .*segmentation.*; got 'astrology'"):
            demo_site("astrology", "a", cache=tmp_path)
        for name in ("", "../a", "a/b", ".a"):
            with pytest.raises(ValueError, match="site must be a plain name"):
                demo_site("quick", name, cache=tmp_path)
