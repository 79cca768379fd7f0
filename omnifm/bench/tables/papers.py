"""The papers' tables as plain data: rows, columns, metrics, grids, and replacements for what is not available.

OmniFM: arXiv 2603.21660, tables 1-8 and figure 5.  FedSCA: tables 1-5 of its paper.  `federations` and `routed_parts`
are ours: real federations, and every baseline with OmniFM's own head.  `paper_tables` runs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from omnifm.bench.tables.comparison import Column, Row, Scale, Table
from omnifm.bench.tables.records import Changes

LOCAL = Row("Local", {"name": "local"})
FEDAVG = Row("FedAvg", {"name": "fedavg"})
FEDPROX = Row("FedProx", {"name": "fedprox"}, {"mu": (0.001, 0.01, 0.1)})
DITTO = Row("Ditto", {"name": "ditto"}, {"lam": (0.1, 1.0)})
SCAFFOLD = Row("SCAFFOLD", {"name": "scaffold"})
MOON = Row("MOON", {"name": "moon"}, {"mu": (0.1, 1.0, 5.0)})
GPFL = Row("GPFL", {"name": "gpfl"}, {"lam": (0.001, 0.01, 0.1)})
FEDDYN = Row("FedDyn", {"name": "feddyn"}, {"alpha": (0.01, 0.1, 1.0)})
FEDREP = Row("FedRep", {"name": "fedrep"}, extra_epochs=1)
FEDBN = Row("FedBN", {"name": "fedbn"})
FEDADAM = Row("FedAdam", {"name": "fedadam"}, {"lr": (0.001, 0.01, 0.1)})
FEDYOGI = Row("FedYogi", {"name": "fedyogi"}, {"lr": (0.001, 0.01, 0.1)})
FEDAVGM = Row("FedAvgM", {"name": "fedavgm"}, {"momentum": (0.5, 0.9)})
FEDALA = Row("FedALA", {"name": "fedala"}, {"eta": (0.1, 1.0)})
PFA = Row("PFA (PRR-FL)", {"name": "pfa"}, {"start": (0.5, 0.7, 0.9)})
FEDSA_LORA = Row("FedSA-LoRA", {"name": "fedsa_lora"}, only=("LoRA",))
DEER = Row("DEeR", {"name": "deer"}, only=("LoRA",))
FEDPER = Row("FedPer (paper)", {"name": "fedper", "capacity": "paper"})
MATCHED = Row("FedPer (matched)", {"name": "fedper", "capacity": "matched"})
LOCAL_MATCHED = Row("Local (matched)", {"name": "local", "capacity": "matched"})
FEDAVG_MATCHED = Row("FedAvg (matched)", {"name": "fedavg", "capacity": "matched"})
OMNIFM = Row("OmniFM", {"name": "omnifm"}, {"align_weight": (0.01, 0.1, 1.0)})
ROUTED = Row("OmniFM (routed)", {"name": "omnifm", "reach": 0.3, "share": "all"}, OMNIFM.grid)
FEDSCA = Row("FedSCA", {"name": "fedsca"}, {"alpha": (0.1, 0.5, 2.0)})


TINY = (
    "At scales other than paper a tiny random CLIP and LLaMA replace CLIP ViT-B/32 and LLaMA-3.2-3B: the numbers "
    "compare methods with each other, and not with the paper's."
)


def _omnifm(name: str, **settings: float | int | str | None) -> Row:
    return Row(name, {"name": "omnifm", **settings}, tuned=False)


def _routed(name: str, **settings: float | int | str | None) -> Row:
    return Row(name, {**ROUTED.method, **settings}, tuned=False)


def _fedsca(name: str, **settings: float | int | str | None) -> Row:
    return Row(name, {"name": "fedsca", **settings}, tuned=False)


# OmniFM's columns.
def _classification() -> tuple[Column, ...]:
    scenarios = {"1 hard": "cls_medmnist_hard", "2 medium": "cls_medmnist_medium", "3 extra": "cls_medmnist_extra"}
    return tuple(
        Column(f"{name}, {share}%", data, "cls_medmnist", {"train": {"participation": share / 100}}, num_sites=10)
        for name, data in scenarios.items()
        for share in (100, 50, 20)
    )


def _super_resolution() -> tuple[Column, ...]:
    presets = {2: "paper", 4: "paper_x4", 8: "paper_x8"}
    return tuple(
        Column(
            f"x{scale}, scenario {number}",
            f"sr_breakhis_{number}",
            "sr_breakhis",
            {"task": {"scale": scale}},
            presets[scale],
        )
        for scale in presets
        for number in (1, 2)
    )


def _tunings() -> tuple[Column, ...]:
    tunings = {"F-C": "connector", "F-L": "lm", "F-CL": "joint", "F-2stage": "two_stage"}
    return tuple(
        Column(
            f"{name} {kind}",
            f"vqa_slake_{kind.lower().replace('-', '')}",
            "vqa_slake",
            {"model": {"tuning": tuning, "peft": "lora"}},
        )
        for name, tuning in tunings.items()
        for kind in ("IID", "non-IID")
    )


def _pefts() -> tuple[Column, ...]:
    names = {"Full": "full", "Adapter": "adapter", "LayerNorm": "layernorm", "LoRA": "lora", "Bias": "bias"}
    return tuple(
        Column(name, "vqa_datasets", "vqa_datasets", {"model": {"tuning": "joint", "peft": peft}}, num_sites=5)
        for name, peft in names.items()
    )


def _federations() -> tuple[Column, ...]:
    """Real federations, as `omnifm prepare` makes them; the budgets are those of docs/evidence.md."""
    jobs = {
        "seg_fundus": ("seg_fets", 6, 4),
        "seg_brain_2d": ("seg_fets", 6, 4),
        "seg_hippocampus": ("seg_fets", 6, 2),
        "seg_four_modalities": ("seg_fets", 6, 4),
        "seg_polyp": ("seg_fets", 8, 4),
        "cls_blood": ("cls_medmnist", 4, 1),
        "cls_derma": ("cls_medmnist", 3, 1),
        "cls_four_modalities": ("cls_medmnist", 3, 1),
        "breakhis": ("sr_breakhis", 5, 6),
        "harvard": ("fusion_harvard", 2, 1),
        "vqa_rad": ("vqa_slake", 5, 3),
    }
    return tuple(
        Column(
            name,
            name,
            job,
            budget={"num_rounds": rounds, "local_epochs": epochs},
            note=TINY if name == "vqa_rad" else "",
        )
        for name, (job, rounds, epochs) in jobs.items()
    )


LORA: Changes = {"model": {"tuning": "joint", "peft": "lora"}}
CLS = Column("CLS", "cls_medmnist_hard", "cls_medmnist", num_sites=10)
SR = Column("SR", "sr_breakhis_1", "sr_breakhis")
SEG = Column("SEG", "seg_fets_group1", "seg_fets", num_sites=9)
FUSION = Column("Fusion", "fusion_harvard", "fusion_harvard")
VQA1 = Column("VQA-T1", "vqa_slake_noniid", "vqa_slake", LORA)
VQA2 = Column("VQA-T2", "vqa_modalities", "vqa_modalities", LORA, num_sites=8)
VQA3 = Column("VQA-T3", "vqa_datasets", "vqa_datasets", {"model": {"tuning": "joint", "peft": "adapter"}}, num_sites=5)
GROUPS = tuple(
    Column(f"Group {number}", f"seg_fets_group{number}", "seg_fets", num_sites=sites)
    for number, sites in ((1, 9), (2, 6), (3, 5), (4, 3))
)
PROSTATE = Column("Fed-Prostate", "seg_prostate", "seg_fets", num_sites=6)
POLYP = Column("Fed-Polyp", "seg_polyp", "seg_fets", num_sites=4)
FUNDUS = Column("Fed-Fundus", "seg_fundus", "seg_fets", num_sites=4)
REAL = _federations()

NO_SAM = (
    "MONAI's UNet with all weights trained replaces Medical-SAM with adapters; LAT sends its lowest layers.  FedHEAL, "
    "FedDBE and FedRA are left out; FedFMS is FedAvg; FedSA needs LoRA (OmniFM table 5)."
)
MORE = "Local and FedPer (matched), which has OmniFM's own head and suffix, are added to the paper's rows."

TABLES: Mapping[str, Table] = {
    "federations": Table(
        "Real federations: OmniFM beside baselines with its own head",
        REAL,
        (LOCAL_MATCHED, FEDAVG_MATCHED, MATCHED, OMNIFM, ROUTED),
        ("dice", "balanced_accuracy", "psnr", "ssim", "accuracy"),
        MATCHED.name,
        ("cls_blood",),
        by_site=True,
        tuned_apart=True,
        note="The command omnifm bench summary shows where OmniFM wins, ties and loses.",
        smoke_rows=("FedPer (matched)", "OmniFM (routed)"),
    ),
    "routed_parts": Table(
        "Which part of the routed variant makes the difference?",
        tuple(column for column in REAL if column.name in ("seg_fundus", "seg_brain_2d", "seg_hippocampus")),
        (
            replace(LOCAL_MATCHED, tuned=False),
            replace(FEDAVG_MATCHED, tuned=False),
            replace(ROUTED, tuned=False),
            _omnifm("one average", share="all"),
            _routed("head at home", share="backbone"),
            _routed("w/o GSKR", retrieval="mean"),
            _routed("w/o ECA", fusion="film"),
            _routed("w/o PSP", prompting="linear"),
            _routed("w/o SPAlign", align_weight=0.0),
            _routed("w/o local key", local_key=False),
        ),
        ("dice",),
        ROUTED.name,
        ("seg_fundus",),
        smoke_rows=("OmniFM (routed)", "one average"),
    ),
    "omnifm_1": Table(
        "OmniFM table 1: cross-modality classification",
        _classification(),
        (LOCAL, FEDAVG, FEDPROX, DITTO, SCAFFOLD, MOON, GPFL, FEDDYN, FEDREP, FEDBN, FEDPER, MATCHED, OMNIFM),
        ("accuracy", "macro_f1", "balanced_accuracy"),
        MATCHED.name,
        ("1 hard, 100%",),
        note=f"{MORE}  FedBN is added too.",
        smoke_rows=("FedPer (matched)", "FedRep"),
    ),
    "omnifm_2": Table(
        "OmniFM table 2: super-resolution",
        _super_resolution(),
        (LOCAL, FEDAVG, FEDPROX, FEDPER, MATCHED, OMNIFM),
        ("psnr", "ssim"),
        MATCHED.name,
        ("x2, scenario 1",),
        by_site=True,
        note="FedPer (matched) is added to the paper's rows.  EDSR on luma; two divisions of BreaKHis.",
        smoke_rows=("FedPer (matched)", "OmniFM"),
    ),
    "omnifm_3": Table(
        "OmniFM table 3: VQA task 1, what is tuned",
        _tunings(),
        (LOCAL, FEDAVG, FEDPROX, FEDADAM, FEDAVGM, FEDYOGI, FEDDYN, FEDPER, MATCHED, OMNIFM),
        ("accuracy", "open_recall"),
        MATCHED.name,
        ("F-CL IID",),
        note=f"{MORE}  {TINY}",
        smoke_rows=("FedPer (matched)", "OmniFM"),
    ),
    "omnifm_4": Table(
        "OmniFM table 4: VQA task 2, one modality per site",
        (VQA2,),
        (LOCAL, FEDAVG, FEDPROX, FEDADAM, FEDDYN, FEDPER, MATCHED, OMNIFM),
        ("accuracy", "open_recall"),
        MATCHED.name,
        ("VQA-T2",),
        by_site=True,
        note=f"{MORE}  {TINY}",
        smoke_rows=("FedPer (matched)", "OmniFM"),
    ),
    "omnifm_5": Table(
        "OmniFM table 5: VQA task 3, one data set per site, by fine-tuning",
        _pefts(),
        (LOCAL, FEDAVG, FEDPROX, FEDADAM, FEDDYN, FEDSA_LORA, DEER, FEDPER, MATCHED, OMNIFM),
        ("accuracy", "open_recall"),
        MATCHED.name,
        ("LoRA",),
        by_site=True,
        note=f"{MORE}  {TINY}  FedDAT, PromptFL and F3OCUS are left out; FedSA-LoRA and DEeR are added under LoRA.",
        smoke_rows=("FedSA-LoRA", "FedPer (matched)"),
    ),
    "omnifm_6": Table(
        "OmniFM table 6: segmentation",
        GROUPS,
        (LOCAL, FEDAVG, FEDPROX, FEDPER, MATCHED, OMNIFM),
        ("dice", "iou"),
        MATCHED.name,
        ("Group 1",),
        note="FedPer (matched) is added to the paper's rows.",
        smoke_rows=("FedPer (matched)", "OmniFM"),
    ),
    "omnifm_7": Table(
        "OmniFM table 7: multi-modal fusion",
        (FUSION,),
        (LOCAL, FEDAVG, FEDPROX, DITTO, FEDDYN, MOON, MATCHED, OMNIFM),
        ("vif", "ssim", "l1"),
        MATCHED.name,
        ("Fusion",),
        by_site=True,
        note=MORE,
        smoke_rows=("FedPer (matched)", "OmniFM"),
    ),
    "omnifm_8": Table(
        "OmniFM table 8: ablation",
        (CLS, SR, SEG, VQA1, VQA2, VQA3),
        (
            replace(LOCAL, tuned=False),
            _omnifm("OmniFM"),
            _omnifm("w/o GSKR", retrieval="mean"),
            _omnifm("w/o ECA", fusion="film"),
            _omnifm("w/o PSP", prompting="linear"),
            _omnifm("w/o SPAlign", align_weight=0.0),
            _omnifm("w/o local key", local_key=False),
        ),
        ("accuracy", "psnr", "dice"),
        "OmniFM",
        ("CLS",),
        note=f"The local key is ours, not the paper's.  {TINY}",
        smoke_rows=("OmniFM", "w/o GSKR"),
    ),
    "omnifm_figure_5": Table(
        "OmniFM figure 5: sensitivity to lambda and k",
        (CLS, SR, SEG, VQA1, FUSION, REAL[0]),
        (
            replace(LOCAL, tuned=False),
            _omnifm("OmniFM (lambda 0.1, k 2)"),
            *(_omnifm(f"lambda {value:g}", align_weight=value) for value in (0.0, 0.01, 1.0, 10.0)),
            *(_omnifm(f"k {value}", num_retrieved=value) for value in (1, 4, 8)),
        ),
        ("accuracy", "psnr", "dice", "vif"),
        "OmniFM (lambda 0.1, k 2)",
        ("CLS",),
        note=f"The figure prints no values of lambda and k: these are ours, around the defaults; {REAL[0].name} is "
        f"ours too.  {TINY}",
        smoke_rows=("OmniFM (lambda 0.1, k 2)", "k 4"),
    ),
    "fedsca_1": Table(
        "FedSCA table 1: Fed-Prostate",
        (PROSTATE,),
        (LOCAL, FEDAVG, FEDPROX, FEDALA, FEDBN, PFA, FEDPER, FEDSCA),
        ("dice", "iou"),
        "FedAvg",
        ("Fed-Prostate",),
        by_site=True,
        note=f"{NO_SAM}  Local, FedBN, FedPer and PFA are added.",
        smoke_rows=("FedAvg", "FedSCA"),
    ),
    "fedsca_2": Table(
        "FedSCA table 2: Fed-Polyp and Fed-Fundus",
        (POLYP, FUNDUS),
        (LOCAL, FEDAVG, FEDPROX, FEDALA, FEDBN, PFA, FEDPER, FEDSCA),
        ("dice", "iou"),
        "FedAvg",
        ("Fed-Polyp",),
        by_site=True,
        note=f"{NO_SAM}  Local, FedBN, FedPer and PFA are added.",
        smoke_rows=("FedAvg", "FedALA"),
    ),
    "fedsca_3": Table(
        "FedSCA table 3: computation and communication",
        (POLYP,),
        (LOCAL, FEDAVG, FEDPROX, FEDALA, FEDPER, FEDSCA),
        ("iou", "dice"),
        "FedAvg",
        ("Fed-Polyp",),
        note=f"{NO_SAM}  All rows train all weights, so there are no separate rows for full tuning.",
        smoke_rows=("FedAvg", "FedSCA"),
    ),
    "fedsca_4": Table(
        "FedSCA table 4: ablation",
        (POLYP,),
        (
            replace(LOCAL, tuned=False),
            replace(FEDAVG, tuned=False),
            _fedsca("SGCA", num_layers=None),
            _fedsca("LAT", aggregation="mean"),
            _fedsca("FedSCA (both)"),
        ),
        ("iou", "dice"),
        "FedAvg",
        ("Fed-Polyp",),
        by_site=True,
        note=NO_SAM,
        smoke_rows=("FedAvg", "SGCA"),
    ),
    "fedsca_5": Table(
        "FedSCA table 5: similarity in SGCA",
        (POLYP,),
        (
            replace(LOCAL, tuned=False),
            _fedsca("Inner", metric="inner"),
            _fedsca("Cosine", metric="cosine"),
            _fedsca("L1-based", metric="l1"),
            _fedsca("L2-based"),
        ),
        ("iou", "dice"),
        "L2-based",
        ("Fed-Polyp",),
        by_site=True,
        note=NO_SAM,
        smoke_rows=("Cosine", "L2-based"),
    ),
}

_FAST = {"num_rounds": 1, "local_epochs": 1}
SCALES: Mapping[str, Scale] = {
    "smoke": Scale(
        num_seeds=1,
        num_sites=2,
        shrunk={
            "classification": {
                "task": {"image_size": 16},
                "model": {"channels": [8, 8, 8, 8]},
                # Two passes, because FedRep uses one of them for its head.
                "train": {"num_rounds": 1, "local_epochs": 2, "batch_size": 4, "lr": 0.01},
            },
            # Four levels, because a network with fewer has too many tokens for attention.
            "segmentation": {"task": {"patch_size": 48}, "model": {"channels": [4, 4, 8, 8]}, "train": _FAST},
            "super_resolution": {"task": {"patch_size": 24}, "model": {"channels": 8, "num_blocks": 1}, "train": _FAST},
            "image_fusion": {"task": {"patch_size": 32}, "model": {"growth": 4, "decoder": [4]}, "train": _FAST},
            "vqa": {"train": _FAST},
        },
        cases={
            "classification": (8, 3, 4),
            "segmentation": (3, 1, 1),
            "super_resolution": (4, 1, 2),
            "image_fusion": (4, 1, 2),
            "vqa": (6, 2, 3),
        },
    ),
    "cpu": Scale(num_seeds=3, lr_factors=(1 / 3, 1.0, 3.0), constants=True),
    "paper": Scale(num_seeds=3, lr_factors=(1 / 3, 1.0, 3.0), constants=True, presets=True, device="auto"),
}
