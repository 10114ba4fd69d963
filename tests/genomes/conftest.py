"""What the tests of genotypes share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ddvi_fast import InputError


@pytest.fixture
def one_line() -> Callable[[Callable], str]:
    """The text of the `InputError` that a call must raise; it is one line."""

    def text_of(call: Callable) -> str:
        with pytest.raises(InputError) as error:
            call()
        assert "\n" not in str(error.value)
        return str(error.value)

    return text_of
