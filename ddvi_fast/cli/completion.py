"""Completion scripts for shells: commands, settings and the choices of configuration groups.

The words stand in the script itself, because starting Python at every press of the key would be too slow.
"""

from __future__ import annotations

from collections.abc import Sequence

from ddvi_fast import _checks
from ddvi_fast.config.names import GROUPS, choices, setting_names

SHELLS = ("bash", "zsh", "fish")
_CONFIGURED = ("train", "demo")  # commands whose arguments are settings
_OPTIONS = ("--dry-run", "--settings", "--paper", "--replay")


def script(shell: str, commands: Sequence[str]) -> str:
    """The completion script of a shell.

    Args:
        shell: The shell, one of `SHELLS` (str).
        commands: The names of the commands; those that take no settings are completed with files (list of str).

    Raises:
        InputError: another shell.

    Example:
        >>> "prior=pinwheel" in script("bash", ["train", "doctor"])
        True
    """
    template = _TEMPLATES[_checks.choice(shell, SHELLS, "completion")]
    return template.replace("@COMMANDS@", " ".join(commands)).replace("@SETTINGS@", " ".join(words())).replace("@CONFIGURED@", _alternatives(shell))


def words() -> list[str]:
    """All arguments of a command that takes settings: options, ``group=choice`` of a configuration group, ``name=`` of a setting."""
    grouped = [f"{group}={choice}" for group in GROUPS for choice in choices(group)]
    return [*_OPTIONS, *grouped, *(f"{name}=" for name in setting_names() if name not in GROUPS)]


def _alternatives(shell: str) -> str:
    return " ".join(_CONFIGURED) if shell == "fish" else "|".join(_CONFIGURED)


# In bash `=` ends a word, so the name before it is cut from the answers.
_BASH = """_ddvi_fast() {
    local line="${COMP_LINE:0:COMP_POINT}" words="" word
    local current="${line##* }"
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "@COMMANDS@" -- "$current"))
        return
    fi
    case "${COMP_WORDS[1]}" in
        @CONFIGURED@) words="@SETTINGS@" ;;
        *) COMPREPLY=($(compgen -f -- "${current#*=}")); return ;;
    esac
    for word in $(compgen -W "$words" -- "$current"); do
        case "$current" in *=*) word="${word#*=}" ;; esac
        COMPREPLY+=("$word")
    done
    case "${COMPREPLY[0]}" in *=) compopt -o nospace 2>/dev/null ;; esac
}
complete -F _ddvi_fast ddvi-fast
"""

_ZSH = """#compdef ddvi-fast
_ddvi_fast() {
    if (( CURRENT == 2 )); then
        compadd -- @COMMANDS@
        return
    fi
    case "$words[2]" in
        @CONFIGURED@) compadd -S '' -- @SETTINGS@ ;;
        *) _files ;;
    esac
}
(( $+functions[compdef] )) && compdef _ddvi_fast ddvi-fast
"""

_FISH = """complete -c ddvi-fast -n __fish_use_subcommand -f -a "@COMMANDS@"
complete -c ddvi-fast -n "__fish_seen_subcommand_from @CONFIGURED@" -f -a "@SETTINGS@"
"""

_TEMPLATES = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
