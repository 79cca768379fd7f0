import numpy as np
import pytest

from omnifm.tasks._pictures import caption, common_channels, in_channels


class TestChannels:
    @pytest.mark.parametrize(("found", "common"), [([1, 1], 1), ([3], 3), ([1, 3, 1], 3), ([4, 4], 4)])
    def test_grey_joins_colour(self, found, common):
        assert common_channels(found, "sites") == common

    @pytest.mark.parametrize("found", [[1, 4], [1, 3, 4], [2, 3]])
    def test_refuses_other_mixtures(self, found):
        with pytest.raises(ValueError, match=r"sites must have one number of channels, or 1 and 3 .*; got \["):
            common_channels(found, "sites")

    def test_grey_becomes_equal_channels_and_colour_stays(self):
        grey = np.arange(6.0, dtype=np.float32).reshape(2, 3, 1)
        assert in_channels(grey, 3).shape == (3, 2, 3, 1)
        assert all(np.array_equal(channel, grey) for channel in in_channels(grey, 3))
        colour = np.random.default_rng(0).random((2, 3, 1, 3))
        assert np.array_equal(in_channels(colour, 3), np.moveaxis(colour, -1, 0))

    def test_colour_in_a_grey_federation_is_refused(self):
        with pytest.raises(ValueError, match=r"grey or of this federation's 1 channel.*; got 3"):
            in_channels(np.zeros((2, 3, 1, 3), np.float32), 1)


class TestCaption:
    def test_the_picture_stays_and_words_come_below(self):
        pixels = np.full((20, 90, 3), 7, np.uint8)
        one, two = caption(pixels, "true: ring"), caption(pixels, "true: ring\npredicted: solid")
        assert np.array_equal(one[:20], pixels)
        assert one[20:].max() > 200
        assert len(two) - 20 == 2 * (len(one) - 20)
        assert not np.array_equal(one, caption(pixels, "true: wing"))

    def test_any_text_can_be_drawn(self):
        assert caption(np.zeros((4, 30, 3), np.uint8), "мелано́ма 黒色腫 " * 9).shape[1] == 30
