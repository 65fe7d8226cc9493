"""The document about what works on what is what the code does."""

import pytest
from support_matrix import DOCUMENT, HEAD, table


@pytest.mark.exhaustive
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*CPU autocast:UserWarning")
def test_the_support_matrix_is_up_to_date() -> None:
    written = DOCUMENT.read_text(encoding="utf-8")
    assert written == HEAD + table(), "run python tests/support_matrix.py"
    rows = [line for line in written.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 25
    assert all(any(word in row for word in ("exact", "approximate")) for row in rows)
