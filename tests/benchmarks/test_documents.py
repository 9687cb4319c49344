"""What README and docs name is there: settings, tests, pictures, links, and every table a command can write."""

from __future__ import annotations

import re
from pathlib import Path

import ablation_tables
import pytest
import tables
import variants

from worldmodel.model import WorldModel
from worldmodel.overrides import override
from worldmodel.presets import preset
from worldmodel.specs import ActionSpec, ObservationSpec
from worldmodel.training import TrainConfig

ROOT = Path(__file__).parents[2]
DOCUMENTS = {path.name: path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
every_document = pytest.mark.parametrize("name", DOCUMENTS)


def lines_of_settings() -> list[tuple[str, ...]]:
    """Settings that stand together: within one pair of backticks, or in one line of a block."""
    found = []
    for path in DOCUMENTS.values():
        for piece in re.findall(r"`[^`]*`|^worldmodel train.*$", path.read_text(), flags=re.MULTILINE):
            # Those of a table's or a help text's NAME=VALUE are no settings.
            if settings := tuple(re.findall(r"--set\s+([a-z][\w.]*=[\w.]+)", piece)):
                found.append(settings)
    return found


@pytest.mark.parametrize("settings", lines_of_settings(), ids=" ".join)
def test_every_setting_that_is_named_makes_a_model(settings: tuple[str, ...]) -> None:
    observation = ObservationSpec(shape=(56, 56, 3))
    if any(".beside." in setting for setting in settings):
        observation = ObservationSpec.record([observation, ObservationSpec(shape=(6,), kind="vector", scale=1.0)])
    plain = preset("tiny", observation, ActionSpec(sizes=(7,)))
    about_training = [setting for setting in settings if setting.startswith("training.")]
    override(TrainConfig(), *about_training, prefix="training.")
    config = override(plain, *(setting for setting in settings if setting not in about_training))
    assert config != plain or about_training
    WorldModel(config)


@every_document
def test_every_test_that_is_named_is_there(name: str) -> None:
    text = DOCUMENTS[name].read_text()
    written = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for path in re.findall(r"`(tests/[\w/]+\.py)`", text):
        assert (ROOT / path).exists(), path
    for test in re.findall(r"`(test_\w+)`", text):
        assert f"def {test}(" in written, test


@every_document
def test_links_and_pictures_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", DOCUMENTS[name].read_text()):
        assert (DOCUMENTS[name].parent / target).exists(), target


@every_document
def test_every_table_has_an_end_and_somebody_who_writes_it(name: str) -> None:
    text = DOCUMENTS[name].read_text()
    begins = re.findall(r"<!-- table:(\w+) -->", text)
    assert (
        len(begins) == text.count("<!-- end -->") == len(re.findall(r"<!-- table:\w+ -->\n.*?<!-- end -->", text, re.S))
    )
    assert set(begins) <= tables.TABLES.keys()


def test_every_mechanism_has_its_place_on_the_page_of_the_h_net_and_every_group_on_that_of_the_record() -> None:
    for document, prefixes in {"hnet.md": ("glance_", "mechanism_"), "ablation.md": ("ablation_",)}.items():
        shown = set(re.findall(r"<!-- table:(\w+) -->", DOCUMENTS[document].read_text()))
        assert {name for name in tables.TABLES if name.startswith(prefixes)} <= shown
    for variant in set(variants.GROUPS["mechanisms"].values()) - {"plain"}:
        about = [section for section in ablation_tables.SECTIONS if ablation_tables.is_about(section, variant)]
        assert about, f"{variant} stands in no section: give its last setting to one in ablation_tables.SECTIONS"
