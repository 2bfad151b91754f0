from __future__ import annotations

import stat
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from tui_chat import settings
from tui_chat.errors import UsageError
from tui_chat.sampling import SamplingParams
from tui_chat.settings import Paths, Settings, State
from tui_chat.tui.actions import ACTIONS


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(config=tmp_path / "config", data=tmp_path / "data", cache=tmp_path / "cache")


def written(paths: Paths, text: str) -> tuple[Settings, list[str]]:
    paths.config.mkdir(exist_ok=True)
    paths.settings_file.write_text(text, "utf-8")
    return settings.load(paths)


def test_without_a_file_the_defaults_are_in_force_and_nothing_is_made(paths: Paths) -> None:
    assert settings.load(paths) == (Settings(), [])
    assert not paths.config.exists()


def test_settings_come_back_as_they_were_saved(paths: Paths) -> None:
    chosen = Settings(
        theme="nord",
        roots=("~/runs", "/data/ü"),
        system='Say "hi".\nBe short.',
        sampling=SamplingParams(temperature=0.3, stop=("\n\n",), seed=7),
        presets={"wild one": SamplingParams(temperature=1.4, top_k=0)},
        mouse=False,
        keymap={"chat.send": "ctrl+s"},
    )
    settings.save(paths, chosen)
    assert settings.load(paths) == (chosen, [])


def test_a_line_break_in_a_text_survives_as_it_was(paths: Paths) -> None:
    chosen = Settings(system='a\r\nb\tc\\ """ \'d\'')
    settings.save(paths, chosen)
    assert settings.load(paths)[0].system == chosen.system


def test_defaults_are_not_written_down(paths: Paths) -> None:
    settings.save(paths, Settings())
    assert paths.settings_file.read_text() == ""


def test_each_bad_value_costs_one_sentence_and_its_own_default(paths: Paths) -> None:
    found, notices = written(
        paths,
        'theme = "nord"\nmouse = "yes"\nroots = [1]\ncolour = 3\n'
        '[sampling]\ntemperature = "hot"\ntop_k = 7\nwarmth = 1\nmin_p = inf\n'
        '[presets.mine]\ntop_p = 2.0\n[keymap]\n"chat.send" = 3\n"chat.stop" = "ctrl+x"\n',
    )
    assert found == Settings(
        theme="nord",
        sampling=SamplingParams(top_k=7),
        presets={"mine": SamplingParams()},
        keymap={"chat.stop": "ctrl+x"},
    )
    for word in (
        "mouse",
        "roots",
        "colour",
        "temperature",
        "warmth",
        "min_p",
        "top_p",
        "chat.send",
    ):
        assert len([n for n in notices if word in n.split("There are")[0]]) == 1, word
    assert len(notices) == 8


@pytest.mark.parametrize("text", ["theme = ", "[a\n", "\x00", "x = 1\nx = 2"])
def test_a_file_that_is_no_toml_costs_one_sentence(paths: Paths, text: str) -> None:
    found, notices = written(paths, text)
    assert found == Settings()
    assert len(notices) == 1 and str(paths.settings_file) in notices[0]


def test_bytes_that_are_no_text_cost_one_sentence(paths: Paths) -> None:
    paths.config.mkdir()
    paths.settings_file.write_bytes(b'theme = "\xff"')
    found, notices = settings.load(paths)
    assert found == Settings() and len(notices) == 1


def test_a_failed_save_leaves_the_old_file_and_no_other(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.save(paths, Settings(theme="old"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UsageError, match="No space left"):
        settings.save(paths, Settings(theme="new"))
    assert settings.load(paths)[0].theme == "old"
    assert [p.name for p in paths.config.iterdir()] == ["settings.toml"]


def test_settings_behind_a_link_stay_behind_it(paths: Paths, tmp_path: Path) -> None:
    (tmp_path / "dotfiles").mkdir()
    kept = tmp_path / "dotfiles" / "chat.toml"
    kept.write_text("")
    paths.config.mkdir()
    paths.settings_file.symlink_to(kept)
    settings.save(paths, Settings(theme="nord"))
    assert paths.settings_file.is_symlink()
    assert 'theme = "nord"' in kept.read_text()


def test_state_is_remembered_apart_from_the_settings(paths: Paths) -> None:
    state = State(last_checkpoint="/runs/ckpt.pt", last_session="ab12", panel_open=False)
    settings.save_state(paths, state)
    assert settings.load_state(paths) == state
    assert not paths.settings_file.exists()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"last_session": 3, "panel_open": 1}', "null"])
def test_a_damaged_state_is_forgotten_quietly(paths: Paths, text: str) -> None:
    paths.data.mkdir()
    paths.state_file.write_text(text)
    assert settings.load_state(paths) == State()


def test_state_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    here = Paths(config=tmp_path, data=tmp_path / "file" / "below", cache=tmp_path)
    settings.save_state(here, State())
    assert settings.load_state(here) == State()


def test_every_directory_can_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CONFIG", "DATA", "CACHE"):
        monkeypatch.setenv(f"TUI_CHAT_{name}_DIR", str(tmp_path / name))
    paths = Paths.find()
    assert paths.settings_file == tmp_path / "CONFIG" / "settings.toml"
    assert paths.database.parent == tmp_path / "DATA"
    assert paths.log.parent == tmp_path / "CACHE"


def test_settings_are_for_their_owner_alone(paths: Paths) -> None:
    settings.save(paths, Settings(system="secret"))
    assert stat.S_IMODE(paths.settings_file.stat().st_mode) & 0o077 == 0


def test_the_settings_shown_in_the_readme_can_all_be_used(paths: Paths) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
    shown = readme.partition("```toml\n")[2].partition("```")[0]
    read, notices = written(paths, shown)
    assert notices == []
    assert set(tomllib.loads(shown)) == {f.name for f in fields(Settings)}
    assert read.presets["careful"].top_p == 0.9
    assert set(read.keymap) <= {action.id for action in ACTIONS}
