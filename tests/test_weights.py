"""The models by name: which the wheel holds, which the zoo, and what each must be."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from ferkit import weights
from ferkit.core.errors import ModelFileError
from ferkit.core.modelfile import ENSEMBLE, ModelInfo, read_model, resolve_model
from ferkit.export.card import render_card

MIB = 1 << 20
ZOO = (
    "ferkit-base",
    "ferkit-cutmix",
    "ferkit-distilled",
    "ferkit-large",
    "ferkit-small",
    "ferkit-taught",
    "fast-start",
    "member-photos",
    "member-vgg",
)
NAMES = (*weights.embedded_models(), *weights.zoo_models())
LIMITS = {"fast": (1, 20), "standard": (3, 100), "best": (16, 500)}
"""The most MiB and MMAC that each name promises."""


def info_of(name: str) -> ModelInfo:
    return read_model(resolve_model(name))[1]


def test_the_wheel_holds_the_models_that_a_user_chooses_from_by_name() -> None:
    folder = Path(weights.__file__).parent
    names = weights.embedded_models()
    assert {file.name for file in folder.iterdir() if file.is_file()} == {
        "__init__.py",
        *(f"{name}{suffix}" for name in names for suffix in (".onnx", ".md")),
    }
    assert names == ("fast", "standard", "best")
    assert weights.DEFAULT == "standard"
    assert tuple(weights.PURPOSES) == tuple(LIMITS)


@pytest.mark.parametrize("name", weights.embedded_models())
def test_a_model_of_the_wheel_keeps_the_limits_of_its_name(name: str) -> None:
    mebibytes, mmac = LIMITS[name]
    assert resolve_model(name).stat().st_size <= mebibytes * MIB
    assert info_of(name).mmac <= mmac


def test_the_zoo_holds_the_other_models() -> None:
    assert set(ZOO) <= set(weights.zoo_models())
    assert set(weights.zoo_models()).isdisjoint(weights.embedded_models())


@pytest.mark.parametrize("name", [*weights.embedded_models(), *ZOO])
def test_a_model_is_complete_and_its_card_is_its_own(name: str) -> None:
    path, info = resolve_model(name), info_of(name)
    assert info.name == name
    assert path.with_suffix(".md").read_text("utf-8") == render_card(info, path.stat().st_size)
    assert info.notes
    assert info.licence
    assert info.default_taxonomy == "basic"
    assert set(info.crops) == {"yunet", "centerface"}
    assert {head.id for head in info.taxonomies} == {"fer2013", "ferplus", "basic"}
    for head in info.taxonomies:
        assert head.coverage is not None, "--max-error"
        assert {curve.measure for curve in head.quality} <= {"sharpness", "brightness"}
        assert head.prior
        assert head.cam
    assert {m.labels for m in info.metrics} >= {"fer2013", "ferplus majority", "basic"}


def test_best_is_an_ensemble_of_models_at_hand() -> None:
    info = info_of("best")
    assert info.architecture == ENSEMBLE
    assert len(info.members) >= 3
    for member in info.members:
        assert member.sha256 == hashlib.sha256(resolve_model(member.name).read_bytes()).hexdigest()
    assert set(info.training.fitted) == {"fer2013", "ferplus", "basic"}


def test_a_larger_model_is_more_accurate() -> None:
    """What the order of the names promises; measured on PublicTest without test-time augmentation."""
    rows = {
        name: next(m.accuracy for m in info_of(name).metrics if (m.labels, m.tta) == ("fer2013", "none"))
        for name in weights.embedded_models()
    }
    assert sorted(rows, key=lambda name: rows[name]) == list(rows)


def test_standard_records_what_it_was_distilled_from() -> None:
    training = info_of("standard").training
    assert training.teachers is not None
    assert {teacher.name for teacher in training.teachers.models} <= set(NAMES)


def test_without_the_zoo_its_models_are_unknown_and_the_error_says_where_they_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_model("ferkit-large").parent.name == "zoo"
    monkeypatch.setattr(weights, "ZOO", tmp_path / "absent")
    held = ", ".join(weights.embedded_models())
    with pytest.raises(
        ModelFileError, match=rf"'ferkit-large'.* holds {held}; .* zoo/ of ferkit's repository"
    ):
        resolve_model("ferkit-large")


@pytest.mark.parametrize("name", ["../weights/standard", "standard.onnx", "", "Standard"])
def test_only_whole_names_are_names(name: str) -> None:
    assert weights.find_model(name) is None
