"""Tiny data sets in the public layouts: at least 24 images of at least 8 patients each, one grey level per image."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Layout:
    """How to make one, and what its importer then needs and promises."""

    make: Callable[[Path], Path]
    required: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    importer: str = ""


def picture(file: Path, level: int = 0) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 6), level, np.uint8)).save(file)
    return file


def breakhis(source: Path) -> Path:
    """The real tree: 8 types x 3 patients, at 100X and 400X."""
    for number, name in enumerate(["B_A", "B_F", "B_PT", "B_TA", "M_DC", "M_LC", "M_MC", "M_PC"]):
        kind = "benign" if name[0] == "B" else "malignant"
        for patient in range(3):
            slide = f"14-{1000 + 10 * number + patient}AB"
            folder = source / f"BreaKHis_v1/histology_slides/breast/{kind}/SOB/type/SOB_{name}_{slide}"
            for zoom in (100, 400):
                picture(folder / f"{zoom}X" / f"SOB_{name}-{slide}-{zoom}-001.png", 10 * number + patient)
    return source


def harvard(source: Path) -> Path:
    """Three kinds of pairs, four cases each; case 2 has a CT and a SPECT."""
    for kind, cases in (("CT", (2, 16, 20, 33)), ("PET", (25, 30, 31, 32)), ("SPECT", (2, 9, 10, 40))):
        for case in cases:
            for number in (4, 5):
                for side in (kind, "MRI"):
                    picture(source / f"{kind}-MRI/{side}/{case}{number:03d}.png", 5 * case)
    return source


def slake(source: Path) -> Path:
    """24 images; each is asked about in two languages, in two of the three official splits."""
    entries: dict[str, list[dict[str, Any]]] = {"train": [], "validate": [], "test": []}
    for number in range(24):
        picture(source / f"imgs/xmlab{number}/source.jpg", number)
        for language, question in (("en", "What modality is it?"), ("zh", "图像的模态是什么？")):
            modality = ("CT", "MRI", "X-Ray")[number % 3]
            entry = {
                "img_id": number,
                "img_name": f"xmlab{number}/source.jpg",
                "question": question,
                "answer": modality,
                "q_lang": language,
                "location": "Lung",
                "modality": modality,
                "answer_type": "OPEN",
                "base_type": "vqa",
                "content_type": "Modality",
                "qid": number,
            }
            entries["train"].append(entry)
            entries["validate" if number % 2 else "test"].append(entry)
    for name, own in entries.items():
        (source / f"{name}.json").write_text(json.dumps(own), encoding="utf-8")
    return source


def vqa_rad(source: Path) -> Path:
    """The original layout, with its warts."""
    entries = []
    for number in range(24):
        name = f"synpic{number}.jpg"
        picture(source / "VQA_RAD Image Folder" / name, number)
        organ = ("HEAD", "CHEST", "ABD")[number % 3]
        for question, answer, kind, subject in (
            ("Is this an MRI?", "Yes", "CLOSED ", "MODALITY, PRSE"),
            ("How many lesions are there?", number, "OPEN", "COUNT"),
        ):
            entries.append(
                {
                    "qid": number,
                    "image_name": name,
                    "image_organ": organ,
                    "answer": answer,
                    "answer_type": kind,
                    "question_type": subject,
                    "question": question,
                    "phrase_type": "test_freeform",
                }
            )
    (source / "VQA_RAD Dataset Public.json").write_text(json.dumps(entries))
    return source


def vqamed2019(source: Path) -> Path:
    lines: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for number in range(24):
        split = "train" if number < 16 else "val" if number < 20 else "test"
        folder = {"train": "Train_images", "val": "Val_images", "test": "VQAMed2019_Test_Images"}[split]
        picture(source / split / folder / f"synpic{number}.jpg", number)
        fields = (f"synpic{number}", "what kind of scan is this?", "ct noncontrast" if number % 2 else "mr - flair")
        lines[split].append("|".join(fields if split != "test" else (fields[0], "modality", fields[1], "flair#t2")))
    for split in ("train", "val"):
        folder = source / split / "QAPairsByCategory"
        folder.mkdir(parents=True)
        (folder / f"C1_Modality_{split}.txt").write_text("\n".join(lines[split]) + "\n")
        (source / split / f"All_QA_Pairs_{split}.txt").write_text("\n".join(lines[split]) + "\n")
    (source / "test/VQAMed2019_Test_Questions_w_Ref_Answers.txt").write_text("\n".join(lines["test"]))
    return source


def vqamed2020(source: Path) -> Path:
    """2020 and 2021 below one folder: images 0-15 train, 16-19 validation and 20-23 test of 2020, 24-31 new in 2021."""
    question = "what abnormality is seen in the image?"
    for number in range(32):
        picture(source / "images" / f"synpic{number}.jpg", number)
    rows = {n: f"synpic{n}|{question}|finding {n}" for n in range(32)}
    files = {
        "VQAnswering_2020_Train_QA_pairs.txt": [rows[n] for n in range(16)],
        "VQAnswering_2020_Val_QA_Pairs.txt": [rows[n] for n in range(16, 20)],
        "VQAMed2020-Task1-VQAnswering-Test-Questions.txt": [f"synpic{n}|{question}" for n in range(20, 24)],
        "VQAMed2020-Task1-VQAnswering-Test-ReferenceAnswers.txt": [f"synpic{n}|yes" for n in range(23, 19, -1)],
        "VQA-Med-2021-VQAnswering-Task1-New-ValidationSet.txt": [rows[n] for n in range(24, 28)],
        "Task1-VQA-2021-TestSet-Questions.txt": [f"synpic{n}|{question}" for n in range(28, 32)],
        "Task1-VQA-2021-TestSet-ReferenceAnswers.txt": [f"synpic{n}|first {n}|second" for n in range(28, 32)],
    }
    for name, lines in files.items():
        (source / "texts").mkdir(exist_ok=True)
        (source / "texts" / name).write_text("\n".join(lines))
    return source


def folder(source: Path) -> Path:
    for number in range(24):
        picture(source / "images" / f"Doe_{number // 3}_{number}.png", number)
        picture(source / "labels" / f"Doe_{number // 3}_{number}.png", number % 2)
    return source


def class_folders(source: Path) -> Path:
    for number in range(24):
        picture(source / ("benign", "malignant")[number % 2] / f"Doe_{number // 3}_{number}.png", number)
    return source


def medmnist(source: Path) -> Path:
    """A colour, a grey and a 3-D subset; the label is the image's grey level modulo the classes."""
    source.mkdir(parents=True, exist_ok=True)
    for name, shape, num_classes in (
        ("dermamnist", (28, 28, 3), 7),
        ("pneumoniamnist", (28, 28), 2),
        ("organmnist3d", (28, 28, 28), 11),
    ):
        arrays = {}
        for split, num, start in (("train", 14, 0), ("val", 4, 14), ("test", 6, 18)):
            levels = np.arange(start, start + num, dtype=np.uint8)
            arrays[f"{split}_images"] = np.broadcast_to(levels.reshape(-1, *[1] * len(shape)), (num, *shape))
            arrays[f"{split}_labels"] = (levels % num_classes).reshape(-1, 1)
        np.savez_compressed(source / f"{name}.npz", **arrays)
    return source


VQA = ("image", "question", "answer", "answer_type", "question_type")
LAYOUTS = {
    "breakhis": Layout(breakhis, ("image", "label")),
    "harvard": Layout(harvard, ("image_a", "image_b", "modality_a", "modality_b")),
    "slake": Layout(slake, VQA),
    "vqa_rad": Layout(vqa_rad, VQA),
    "vqamed": Layout(vqamed2019, VQA),
    "vqamed of 2020": Layout(vqamed2020, VQA, {"year": 2020}, "vqamed"),
    "vqamed of 2021": Layout(vqamed2020, VQA, {"year": 2021}, "vqamed"),
    "folder": Layout(folder, ("image", "label"), {"modality": "US", "labels": "background,lesion"}),
    "folder of classes": Layout(
        class_folders, ("image", "label"), {"modality": "XC", "labels": "benign,malignant"}, "folder"
    ),
    "medmnist": Layout(medmnist, ("image", "label")),
}
