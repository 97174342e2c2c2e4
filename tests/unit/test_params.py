"""Parameters: what is wrong is refused with the nearest right name, and an edit keeps the file's comments."""

from __future__ import annotations

from pathlib import Path

import pytest

from graft import params
from graft.errors import InputError

TEXT = (Path(__file__).parents[2] / "params.yaml").read_text(encoding="utf-8")


def test_the_shipped_file_is_valid_and_frozen() -> None:
    settings = params.parse(TEXT)
    with pytest.raises(ValueError, match="frozen"):
        settings.seed = 3  # type: ignore[misc]


def test_an_edit_changes_its_values_and_nothing_else() -> None:
    edited = params.override(TEXT, ["head.epochs=3", "data.limit_per_class=500", "head.hidden=[128, 64]"])
    settings = params.parse(edited)
    assert (settings.head.epochs, settings.data.limit_per_class, settings.head.hidden) == (3, 500, (128, 64))
    changed = [new for new, old in zip(edited.splitlines(), TEXT.splitlines(), strict=True) if new != old]
    assert len(changed) == 3
    assert all("#" in line or "epochs" in line for line in changed)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("data.sorce=folder", "no key data.sorce; did you mean data.source"),
        ("epochs=3", "did you mean head.epochs"),
        ("data.source=flickr", "data.source should be 'digits', 'cifar10' or 'folder'. Received: 'flickr'"),
        ("head.epochs=many", "head.epochs should be a valid integer. Received: 'many'"),
        ("head.dropout=1.5", "head.dropout should be less than 1. Received: 1.5"),
        ("head.hidden=[a]", "head.hidden should be a valid integer. Received: 'a'"),
        ("seed", "wants key=value"),
        ("seed=[1", "not valid YAML"),
        ("data=3", "no key data"),
    ],
)
def test_a_wrong_assignment_is_one_sentence_with_the_mend(assignment: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        params.override(TEXT, [assignment])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TEXT.replace("image_size", "image_sise"), "did you mean data.image_size"),
        (TEXT.replace("seed: 7", "# no seed"), "key seed is missing"),
        ("- a\n- b\n", "must hold sections"),
        ("data: [", "not valid YAML"),
        ("", "must hold sections"),
    ],
)
def test_a_wrong_file_is_one_sentence(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        params.load(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_says_where_one_stands(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="inside a Graft project"):
        params.load(tmp_path / "params.yaml")
