"""The lines for bash of docs/experiments.md complete commands, fields and files."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPLETE = """
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${#COMP_LINE}
COMPREPLY=()
_experiments
complete -p experiments
printf "%s\\n" "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """Returns the completions of the last word of a line, by the documented lines."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    home = tmp_path_factory.mktemp("home")
    text = (ROOT / "docs/experiments.md").read_text()
    (lines,) = re.findall(r"^```bash\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    write, rest = lines.split("\n\n", 1)
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"

    def run(script, *words):
        done = subprocess.run(
            [bash, "-e", "-c", script, "bash", *words],
            cwd=ROOT,
            env={"HOME": str(home), "PATH": path},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.splitlines()

    run(write)

    def completed(*words):
        registered, *found = run(rest + COMPLETE, *words)
        assert registered == "complete -o default -F _experiments experiments"
        return [word for word in found if word]

    return completed


def test_commands_fields_and_choices_are_completed(complete):
    assert set(complete("experiments", "rep")) == {"replay", "report", "reproduce"}
    fields = complete("experiments", "ablate", "--dropout.recurrent.ra")
    assert fields == ["--dropout.recurrent.rate"]
    assert complete("experiments", "ablate", "--until", "se") == ["settled"]


def test_bash_completes_a_file_by_itself(complete):
    assert complete("experiments", "ablate", "configs/vow") == []
