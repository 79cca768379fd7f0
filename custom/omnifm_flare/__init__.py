"""FLARE's words outside, omnifm's words inside: controller, executor, filters and wire format; no maths."""
