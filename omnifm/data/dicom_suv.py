"""The rule by which a PET series is converted to SUV, the same at every hospital.

A series becomes SUV by body weight (g/mL; QIBA's recipe) if and only if one of these holds:

1. Units is BQML, CorrectedImage holds ATTN and DECY, and dose (1 MBq to 100 GBq), half-life, weight (0.1 to 1000 kg),
   times of injection and scan start are all given and plausible.  Then SUV = value * weight / dose left at scan start.
   If DecayCorrection is ADMIN, values are already corrected to the injection, and the whole dose is used.
2. Units is CNTS and Philips' private factor (7053,1000) is given: SUV = value * factor.  If (7053,1009) is given
   instead, values * factor are BQML, and rule 1 follows.
3. Units is GML: the values are SUV already.

Every other series keeps the unit in its header, and so does enhanced (multi-frame) PET.

The start of the scan is the series time if no slice was acquired before it.  A later series time is that of a
reconstruction.  Then GE's private (0009,100D) is used, or else the acquisition time of the first slice, less its
FrameReferenceTime and plus the time at which the decaying frame had its mean count rate.
"""

import math
import re
from datetime import datetime, timedelta

from pydicom.dataset import Dataset

from omnifm.data.dicom_file import GE_PET, PHILIPS_PET, number, text, texts

CLOCK_ERROR = timedelta(seconds=1)
"""Tolerance between series and acquisition times, which come from different clocks and are rounded."""
# Values outside these limits are not believed.
DOSE_LIMITS_BQ = (1e6, 1e11)
WEIGHT_LIMITS_KG = (0.1, 1000.0)
MAX_HALF_LIVES = 20.0
TIME = re.compile(r"(\d{8})(\d\d)(\d\d)(?:(\d\d)(\.\d{1,6})?)?")


def suv_factor(headers: list[Dataset]) -> float:
    """Factor for a series' values after slope and intercept; 1 if they keep their unit.

    Args:
        headers: the headers of all its slices.
    """
    acquired = [_time(header, "Acquisition") for header in headers]
    first = headers[min(range(len(headers)), key=lambda index: acquired[index] or datetime.max)]
    if None in acquired or len({_facts(header) for header in headers}) > 1:
        return 1.0
    units = text(first, "Units")
    if units == "BQML":
        return _per_bqml(first) or 1.0
    if units == "CNTS" and _private(first, PHILIPS_PET[0]).upper().startswith("PHILIPS PET"):
        direct, to_bqml = (_positive(_private(first, tag)) for tag in PHILIPS_PET[1:])
        return direct or to_bqml * _per_bqml(first) or 1.0
    return 1.0


def _facts(header: Dataset) -> tuple[str, ...]:
    keys = ("Units", "DecayCorrection", "PatientWeight", "SeriesDate", "SeriesTime")
    return tuple(text(header, key) for key in keys)


def _per_bqml(first: Dataset) -> float:
    """SUV per Bq/mL, in g/Bq; 0 if the header does not allow the conversion."""
    injections = list(first.get("RadiopharmaceuticalInformationSequence") or [])
    corrections = {"ATTN", "DECY"}
    if len(injections) != 1 or not corrections <= set(texts(first, "CorrectedImage")):
        return 0.0
    dose_bq = _positive(text(injections[0], "RadionuclideTotalDose"))
    weight_kg = _positive(text(first, "PatientWeight"))
    half_life_s = _positive(text(injections[0], "RadionuclideHalfLife"))
    if not (_within(dose_bq, DOSE_LIMITS_BQ) and _within(weight_kg, WEIGHT_LIMITS_KG) and half_life_s):
        return 0.0
    if text(first, "DecayCorrection") == "ADMIN":
        return 1000 * weight_kg / dose_bq
    scan, injected = _scan_start(first, half_life_s), _injection(first, injections[0])
    if text(first, "DecayCorrection") != "START" or scan is None or injected is None:
        return 0.0
    half_lives = (scan - injected).total_seconds() / half_life_s
    return 1000 * weight_kg / (dose_bq * 0.5**half_lives) if 0 <= half_lives <= MAX_HALF_LIVES else 0.0


def _scan_start(first: Dataset, half_life_s: float) -> datetime | None:
    """The time to which the scanner corrected the decay; None if the header does not give it."""
    series, acquired = _time(first, "Series"), _time(first, "Acquisition")
    if series is None or acquired is None:
        return None
    if series <= acquired + CLOCK_ERROR:
        return series
    if _private(first, GE_PET[0]).upper().startswith("GEMS_PETD"):
        return _parsed(_private(first, GE_PET[1]))
    reference_ms = number(first, "FrameReferenceTime")
    if reference_ms is None or reference_ms < 0:
        return None
    if reference_ms == 0:  # the reference is the start of the first frame
        return acquired
    duration_s = (number(first, "ActualFrameDuration") or 0.0) / 1000
    if duration_s <= 0:
        return None
    decay = math.log(2) / half_life_s
    mean_rate_s = math.log(decay * duration_s / -math.expm1(-decay * duration_s)) / decay
    return acquired + timedelta(seconds=mean_rate_s - reference_ms / 1000)


def _injection(first: Dataset, injection: Dataset) -> datetime | None:
    whole = text(injection, "RadiopharmaceuticalStartDateTime")
    if whole:
        return _parsed(whole)
    return _parsed(text(first, "SeriesDate") + text(injection, "RadiopharmaceuticalStartTime"))


def _time(header: Dataset, which: str) -> datetime | None:
    return _parsed(text(header, f"{which}Date") + text(header, f"{which}Time"))


def _parsed(stamp: str) -> datetime | None:
    """Date and time, to the minute or more precise; None otherwise, also with a time zone, as other times have none."""
    found = TIME.fullmatch(stamp)
    if found is None:
        return None
    day, hour, minute, second, fraction = found.groups()
    try:
        whole = datetime.strptime(day + hour + minute + (second or "00"), "%Y%m%d%H%M%S")
    except ValueError:
        return None
    return whole + timedelta(seconds=float(fraction or 0))


def _private(header: Dataset, tag: int) -> str:
    """The value of a private element as text; "" if it is absent."""
    element = header.get(tag)
    value = "" if element is None else element.value
    return (value.decode("ascii", "ignore") if isinstance(value, bytes) else str(value)).strip(" \0")


def _positive(value: str) -> float:
    """The number in a text; 0 if it is not a positive finite number."""
    try:
        found = float(value)
    except ValueError:
        return 0.0
    return found if 0 < found < math.inf else 0.0


def _within(value: float, limits: tuple[float, float]) -> bool:
    return limits[0] <= value <= limits[1]
