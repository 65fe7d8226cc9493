"""The document about methods that work together is what the code does."""

import pytest
from method_pairs import DOCUMENT, HEAD, tables


@pytest.mark.exhaustive
@pytest.mark.timeout(300)
def test_the_table_of_pairs_is_up_to_date() -> None:
    written = DOCUMENT.read_text(encoding="utf-8")
    assert written == HEAD + tables(), "run python tests/method_pairs.py"
    for pair in ("| DeepCache | TGate |", "| DeepCache | ResidualGuidance |", "| BlockCache | TextKVCache |"):
        assert f"{pair} yes |" in written
    assert "cannot work together: both claim" in written
