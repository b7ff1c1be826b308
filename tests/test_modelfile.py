"""The model contract: what is written comes back, and what is damaged or foreign is refused."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import modelzoo
from ferkit import weights
from ferkit.core import modelfile, taxonomy
from ferkit.core.crops import FER2013_CROPS, CropGeometry
from ferkit.core.errors import ModelFileError, OutputError, TaxonomyError
from ferkit.core.modelfile import (
    HeadInfo,
    MemberInfo,
    ModelInfo,
    Provenance,
    read_model,
    resolve_model,
    write_model,
)


@pytest.fixture(scope="module")
def model_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return modelzoo.write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.onnx").read_bytes()


def test_metadata_comes_back_as_it_was_written(tmp_path: Path) -> None:
    info = modelzoo.model_info().model_copy(
        update={
            "recipe": {"epochs": 3, "lr": 0.1},
            "training": Provenance(source="faces.csv", seeds=(1,), hours=1.5),
            "metrics": (modelzoo.metric(100),),
            "members": (
                MemberInfo(name="a", architecture="vgg", sha256="ab" * 32, weights={"fer2013": 1.0}),
            ),
            "notes": "häßlich ☺",
        }
    )
    write_model(modelzoo.graph_bytes(), info, tmp_path / "m.onnx")
    content, read = read_model(tmp_path / "m.onnx")
    assert read == info
    assert content == (tmp_path / "m.onnx").read_bytes()
    assert read_model(content)[1] == info


def test_the_file_is_an_ordinary_onnx_file(model_bytes: bytes) -> None:
    model = onnx.load_from_string(model_bytes)
    onnx.checker.check_model(model)
    assert {p.key for p in model.metadata_props} == {"ferkit", "ferkit.sha256"}
    assert [o.name for o in model.graph.output] == ["fer2013", "cam_fer2013", "ferplus", "cam_ferplus"]


def test_writing_again_replaces_the_metadata_and_keeps_foreign_entries(tmp_path: Path) -> None:
    model = onnx.load_from_string(modelzoo.graph_bytes())
    onnx.helper.set_model_props(model, {"author": "somebody"})
    path = tmp_path / "m.onnx"
    write_model(model.SerializeToString(), modelzoo.model_info(), path)
    renamed = modelzoo.model_info().model_copy(update={"name": "second"})
    write_model(path.read_bytes(), renamed, path)
    assert read_model(path)[1].name == "second"
    props = {p.key: p.value for p in onnx.load_from_string(path.read_bytes()).metadata_props}
    assert props["author"] == "somebody"
    assert len(props) == 3


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_changed_byte_is_noticed(model_bytes: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(model_bytes) - 1))
    flip = data.draw(st.integers(1, 255))
    changed = bytearray(model_bytes)
    changed[at] ^= flip
    with pytest.raises(ModelFileError):
        read_model(bytes(changed))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_cut_off_file_is_noticed(model_bytes: bytes, data: st.DataObject) -> None:
    with pytest.raises(ModelFileError):
        read_model(model_bytes[: data.draw(st.integers(0, len(model_bytes) - 1))])


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(ModelFileError):
        read_model(content)


def test_appended_bytes_are_noticed(model_bytes: bytes) -> None:
    again = onnx.ModelProto()
    again.metadata_props.add(key="ferkit", value="{}")
    for tail in (b"\0", again.SerializeToString()):
        with pytest.raises(ModelFileError):
            read_model(model_bytes + tail)


def test_an_onnx_file_of_others_is_refused_with_advice() -> None:
    with pytest.raises(ModelFileError, match=r"without ferkit's metadata.*ferkit export"):
        read_model(modelzoo.graph_bytes())


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "no ONNX file"), (b"<html>not found</html>", "no ONNX file"), (b"\x08\x09", "no ONNX file")],
)
def test_what_is_no_onnx_file_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        read_model(content)


@pytest.mark.parametrize("version", [1, 3])
def test_an_unknown_format_version_is_refused(tmp_path: Path, version: int) -> None:
    other = modelzoo.model_info().model_copy(update={"format_version": version, "default_taxonomy": "mood"})
    write_model(modelzoo.graph_bytes(), other, tmp_path / "m.onnx")
    with pytest.raises(ModelFileError, match=rf"format version {version}.*reads version 2.*Update ferkit"):
        read_model(tmp_path / "m.onnx")


def test_each_detector_has_a_crop_geometry_of_its_own() -> None:
    info = modelzoo.model_info()
    assert info.crop_for("yunet") == FER2013_CROPS["yunet"] != info.crop_for("centerface")
    assert info.crop_for("mine") == info.crop_for("yunet")
    with pytest.raises(ValidationError, match="crops"):
        ModelInfo.model_validate({**info.model_dump(), "crops": {}})


@pytest.mark.parametrize("wide", [False, True])
def test_the_one_geometry_of_older_files_is_that_of_centerface(wide: bool) -> None:
    old = CropGeometry(box=(0.3, 0.3, 0.7, 0.7)) if wide else FER2013_CROPS["centerface"]
    data = modelzoo.model_info().model_dump(mode="json", exclude={"crops"})
    info = ModelInfo.model_validate({**data, "crop": old.model_dump(mode="json")})
    assert info.crop_for("centerface") == old
    # What was measured for FER2013's crops is known of other detectors as well.
    assert info.crop_for("yunet") == (old if wide else FER2013_CROPS["yunet"])
    assert "crop" not in json.loads(info.model_dump_json())


def test_an_error_in_metadata_is_one_line_that_names_the_field(tmp_path: Path) -> None:
    broken = modelzoo.model_info().model_copy(update={"training": Provenance.model_construct(epochs="many")})
    with pytest.warns(UserWarning, match="Pydantic"):
        write_model(modelzoo.graph_bytes(), broken, tmp_path / "m.onnx")
    with pytest.raises(ModelFileError, match=r"invalid metadata: training\.epochs: ") as caught:
        read_model(tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)


def test_metadata_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    wrong = modelzoo.model_info().model_copy(update={"default_taxonomy": "mood"})
    write_model(modelzoo.graph_bytes(), wrong, tmp_path / "m.onnx")
    with pytest.raises(ModelFileError, match="invalid metadata"):
        read_model(tmp_path / "m.onnx")


def test_unknown_metadata_of_a_later_version_is_passed_over(tmp_path: Path) -> None:
    class Later(ModelInfo):
        colour: str = "blue"

    later = Later.model_validate(modelzoo.model_info().model_dump())
    write_model(modelzoo.graph_bytes(), later, tmp_path / "m.onnx")
    assert read_model(tmp_path / "m.onnx")[1] == modelzoo.model_info()


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="is a folder"):
        read_model(tmp_path)
    with pytest.raises(ModelFileError, match="No such file"):
        read_model(tmp_path / "absent.onnx")


def test_what_is_no_graph_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no ONNX graph"):
        write_model(b"nothing", modelzoo.model_info(), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        write_model(modelzoo.graph_bytes(), modelzoo.model_info(), tmp_path / "file" / "m.onnx")


@pytest.mark.parametrize(
    "change",
    [
        {"taxonomies": ()},
        {"taxonomies": (HeadInfo(id="a", labels=("x", "y")),) * 2, "default_taxonomy": "a"},
        {"view_size": 49},
        {"input_size": 0},
        {"mmac": float("nan")},
        {"name": ""},
    ],
)
def test_impossible_metadata_cannot_be_made(change: dict[str, object]) -> None:
    fields = modelzoo.model_info().model_dump() | change
    with pytest.raises(ValidationError):
        ModelInfo.model_validate(fields)


@pytest.mark.parametrize(
    "change", [{"accuracy": 1.5}, {"n": 0}, {"tta": "single"}, {"interval": (0.1,)}, {"fit": "everything"}]
)
def test_impossible_figures_cannot_be_made(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        modelzoo.metric(**{"n": 100, **change})


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_a_temperature_is_positive_and_finite(temperature: float) -> None:
    with pytest.raises(ValidationError):
        HeadInfo(id="fer2013", labels=taxonomy.FER2013.labels, temperature=temperature)


def test_a_head_is_found_by_taxonomy_and_its_absence_is_an_error() -> None:
    info = modelzoo.model_info()
    assert info.head().id == "fer2013"
    assert info.head("ferplus").taxonomy == taxonomy.FERPLUS
    with pytest.raises(TaxonomyError, match=r"'mood'.*fer2013, ferplus"):
        info.head("mood")


@pytest.mark.parametrize(("view", "shift"), [(48, 2), (44, 2), (42, 3), (40, 4)])
def test_ten_crop_shifts_by_what_the_graph_cuts_off(view: int, shift: int) -> None:
    assert modelzoo.model_info().model_copy(update={"view_size": view}).ten_crop_shift == shift


def test_models_are_resolved_by_name_or_file(tmp_path: Path) -> None:
    path = modelzoo.write_tiny_model(tmp_path / "mine.onnx")
    assert resolve_model(path) == path
    assert resolve_model(str(path)) == path
    with pytest.raises(ModelFileError, match="no model 'no-such-model'"):
        resolve_model("no-such-model")
    for name in weights.embedded_models():
        assert resolve_model(name) == Path(weights.__file__).parent / f"{name}.onnx"
    assert resolve_model() == resolve_model(weights.DEFAULT)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "x" * 5000])
def test_a_name_that_no_file_can_have_is_no_model(name: str) -> None:
    """A known fault: an OSError of the look-up."""
    with pytest.raises(ModelFileError, match="no model"):
        resolve_model(name)


def test_without_models_the_default_is_an_error_whatever_files_there_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / weights.DEFAULT).mkdir()
    monkeypatch.setattr(weights, "_FOLDER", tmp_path)
    with pytest.raises(ModelFileError, match=f"no model '{weights.DEFAULT}'"):
        resolve_model()


def test_the_digest_is_that_of_the_file_with_its_digest_zeroed(model_bytes: bytes) -> None:
    import hashlib

    assert modelfile.DIGEST_KEY.encode() in model_bytes[-90:]
    assert hashlib.sha256(model_bytes[:-64] + b"0" * 64).hexdigest().encode() == model_bytes[-64:]
