"""The command line as a whole: help, exit codes, speed."""

from __future__ import annotations

import re
import resource
import subprocess
import sys

import pytest

from worldmodel.agents.actor_critic import AgentConfig
from worldmodel.config import BOUNDARIES
from worldmodel.scripts.cli import main
from worldmodel.scripts.dream import DEFAULT_STARTS
from worldmodel.training import TrainConfig

OPTIONS = {
    "collect": ("--env", "--steps", "--out", "--policy", "--num-envs", "--wrappers"),
    "import": ("--npz", "--out", "frames"),
    "train": ("--data", "--out", "--preset", "--boundary", "--updates", "--minutes", "--resume", "--batch-size"),
    "dream": ("--run", "--updates", "--minutes", "--resume", "--horizon", "--learning-rate"),
    "evaluate": ("--run", "--episodes", "--json", "--play-only", "--realign"),
    "show": ("--run", "--out"),
    "demo": ("--out", "--env", "--steps", "--episodes"),
}


def module(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "worldmodel", *argv], capture_output=True, text=True)


@pytest.mark.parametrize("command", OPTIONS)
def test_help_teaches_every_option(command, capsys):
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    for option in (*OPTIONS[command], "--seed", "--device"):
        assert option in text
    assert "{None}" not in text


@pytest.mark.parametrize(
    "command, defaults", [("train", vars(TrainConfig())), ("dream", vars(AgentConfig()) | {"starts": DEFAULT_STARTS})]
)
def test_help_tells_the_true_defaults(command, defaults, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    told = re.findall(r"--([a-z-]+) (?:INT|FLOAT) (?:(?!--).)*?([0-9.e-]+) if not given", text)
    told = {name.replace("-", "_"): float(value) for name, value in told}
    assert len(told) == 6
    assert told == {name: defaults[name] for name in told}


def test_help_says_what_the_critic_cannot(capsys):
    with pytest.raises(SystemExit):
        main(["dream", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert f"between -{AgentConfig().largest_value:.0f} and {AgentConfig().largest_value:.0f} only" in text


def test_every_kind_of_boundary_is_offered(capsys):
    for boundary in BOUNDARIES:
        assert main(["train", "--data", "nowhere", "--out", "nowhere", "--boundary", boundary]) == 2
        assert "nowhere" in capsys.readouterr().err  # what is refused is the folder
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert f"{{{','.join(BOUNDARIES)}}}" in capsys.readouterr().out


def test_help_names_every_command_at_once():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = module("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    assert all(command in done.stdout for command in OPTIONS)
    # CPU time, because the tests may share their machine.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom worldmodel.scripts.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "sys.exit(' '.join({'torch', 'matplotlib', 'av', 'minigrid', 'tensorboard'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == ""


@pytest.mark.parametrize("argv", [["train", "--dta", "x"], ["fly"], [], ["collect", "--env", "CartPole-v1"]])
def test_unknown_or_missing_options_exit_2(argv, capsys):
    with pytest.raises(SystemExit) as left:
        main(argv)
    assert left.value.code == 2


def test_errors_of_the_process_are_one_sentence(tmp_path):
    done = module("collect", "--env", "MiniGrid-Emty-5x5-v0", "--steps", "10", "--out", str(tmp_path / "data"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "MiniGrid-Empty-5x5-v0" in done.stderr  # did you mean
    assert not (tmp_path / "data").exists()


def test_what_the_system_refuses_is_a_sentence_too(made, tmp_path, fails):
    (tmp_path / "file").write_text("")
    fails(["train", "--data", made / "data", "--out", tmp_path / "file", "--updates", 1], str(tmp_path / "file"))
