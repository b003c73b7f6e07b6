"""The list of people who may use the API, and the token of each."""

import pytest

from kit.base import UsageError
from kit.forwarder.collect import Buckets
from kit.forwarder.people import people


@pytest.mark.parametrize(
    ("text", "mode", "message"),
    [
        ("anna\n", 0o600, "line 1, names nobody"),
        ("anna " + "a" * 63, 0o600, "line 1"),
        (f"../x {'a' * 64}", 0o600, "line 1"),
        (f"anna {'a' * 64}\nbea {'a' * 64}", 0o600, "line 2"),
        (f"anna {'a' * 64}", 0o644, "can be read by others"),
        ("\xe4", 0o600, "read who may ask"),
    ],
)
def test_invalid_list_of_people_is_refused(tmp_path, text, mode, message):
    file = tmp_path / "people"
    file.write_text(text)
    file.chmod(mode)
    with pytest.raises(UsageError, match=message):
        people(file, None, lambda user: Buckets(user, user, None, None))
    with pytest.raises(UsageError, match="read who may ask"):
        people(tmp_path / "none", None, lambda user: None)
